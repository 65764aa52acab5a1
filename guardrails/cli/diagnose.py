"""``guardrails diagnose``: asks a database or Redis why there are no connections left.

Knows flags and words; the questions and the verdicts are in `guardrails.diagnosis`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from guardrails.cli._telling import as_text
from guardrails.diagnosis.findings import Finding, judge
from guardrails.errors import ConfigurationError, GuardrailsError

__all__ = ["diagnose"]

_CACHES = ("redis://", "rediss://", "unix://", "valkey://", "valkeys://")


@click.command(help="Asks a database or Redis who holds its connections, who waits and what is slow.")
@click.argument("url", envvar="DATABASE_URL", required=False)
@click.option(
    "--slow",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="From when on a statement, or a transaction in which nothing happens, is long.",
)
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object.")
def diagnose(*, url: str | None, slow: float, as_json: bool) -> None:
    """The command."""
    if url is None:
        raise click.UsageError("say which server: a URL, better in the environment variable DATABASE_URL")
    product, findings = _ask_cache(url, slow) if url.startswith(_CACHES) else _ask_database(url, slow)
    if as_json:
        print(json.dumps({"product": product, "findings": [dataclasses.asdict(each) for each in findings]}))
    else:
        print(as_text(product, findings))
    sys.exit(1 if findings else 0)


def _ask_database(url: str, slow: float) -> tuple[str, Sequence[Finding]]:
    try:
        from sqlalchemy.engine import make_url  # noqa: PLC0415 - of an extra
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        from guardrails.diagnosis.databases import ask  # noqa: PLC0415 - likewise
    except ImportError:
        _missing("sqlalchemy")
    try:
        address = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise _bad_url() from None  # its own message shows the URL
    try:
        facts = ask(address)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    except (SQLAlchemyError, GuardrailsError) as error:
        return address.get_backend_name(), [_unreachable(error)]
    return facts.product, judge(facts, slow)


def _ask_cache(url: str, slow: float) -> tuple[str, Sequence[Finding]]:
    try:
        from redis import RedisError  # noqa: PLC0415 - of an extra

        from guardrails.diagnosis.caches import ask  # noqa: PLC0415 - likewise
    except ImportError:
        _missing("redis")
    try:
        return ask(url.replace("valkey", "redis", 1) if url.startswith("valkey") else url, slow)
    except (ValueError, TypeError):  # a port that is none, an option there is not
        raise _bad_url() from None
    except (RedisError, GuardrailsError, OSError) as error:
        return "redis", [_unreachable(error)]


def _unreachable(error: Exception) -> Finding:
    # Messages of drivers name hosts and users; the kind of error says what happened.
    kind = type(getattr(error, "orig", None) or error).__name__
    return Finding(
        "unreachable",
        f"it does not answer: {kind}",
        (),
        "is it running, can this machine reach it, and may this user connect?",
    )


def _bad_url() -> click.UsageError:
    return click.UsageError(
        "this is no URL of a server, such as postgresql://user@host/name or redis://host:6379"
    )


def _missing(extra: str) -> NoReturn:
    print(f"guardrails: this needs: pip install 'guardrails-db[{extra}]'", file=sys.stderr)
    sys.exit(2)
