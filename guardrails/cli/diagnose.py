"""``guardrails diagnose``: asks a database or Redis why there are no connections left.

Depends on `guardrails.diagnosis`, which has the questions and the verdicts.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

import click

from guardrails.cli._findings import as_text
from guardrails.cli._missing import missing
from guardrails.cli._options import as_json
from guardrails.diagnosis.findings import Finding, judge
from guardrails.errors import ConfigurationError

__all__ = ["diagnose"]

_Answer = tuple[str, Sequence[Finding], Sequence[str]]
"""The product's name, its findings, and the things that this user may not see."""

_CACHES = ("redis://", "rediss://", "unix://", "valkey://", "valkeys://")


@click.command(
    short_help="Asks a database or Redis who waits for whom.",
    help="Asks a database or Redis who holds its connections, who waits and what is slow.",
)
@click.argument("url", envvar="DATABASE_URL", required=False)
@click.option(
    "--slow",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Duration from which a statement, or an idle transaction, is long.",
)
@as_json
def diagnose(*, url: str | None, slow: float, as_json: bool) -> None:
    """Runs the command."""
    if url is None:
        raise click.UsageError("say which server: a URL, better in the environment variable DATABASE_URL")
    product, findings, unseen = (_ask_cache if url.startswith(_CACHES) else _ask_database)(url, slow)
    if as_json:
        answer = {
            "product": product,
            "findings": [dataclasses.asdict(each) for each in findings],
            "unseen": unseen,
        }
        print(json.dumps(answer))
    else:
        print(as_text(product, findings, unseen))
    sys.exit(1 if findings else 0)


def _ask_database(url: str, slow: float) -> _Answer:
    try:
        from sqlalchemy.engine import make_url  # noqa: PLC0415 - of an extra
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        from guardrails.diagnosis.databases import ask, why_not  # noqa: PLC0415 - likewise
    except ImportError:
        missing("sqlalchemy")
    try:
        address = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise _bad_url() from None  # its own message shows the URL
    try:
        facts = ask(address)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        return address.get_backend_name(), [why_not(error, address)], ()
    except (TypeError, ValueError):  # an option that its driver does not have
        raise _bad_url() from None
    return facts.product, judge(facts, slow), facts.unseen


def _ask_cache(url: str, slow: float) -> _Answer:
    try:
        from redis import RedisError  # noqa: PLC0415 - of an extra

        from guardrails.diagnosis.caches import ask, why_not  # noqa: PLC0415 - likewise
    except ImportError:
        missing("redis")
    url = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
    try:
        return ask(url, slow)
    except (RedisError, OSError) as error:
        return "redis", [why_not(error, url)], ()
    except (ValueError, TypeError):  # an invalid port, an unknown option
        raise _bad_url() from None


def _bad_url() -> click.UsageError:
    return click.UsageError(
        "this is no URL of a server, such as postgresql://user@host/name or redis://host:6379"
    )
