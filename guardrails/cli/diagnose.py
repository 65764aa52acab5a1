"""``guardrails diagnose``: asks a database or Redis why there are no connections left.

Depends on `guardrails.diagnosis`, which has the questions and the verdicts.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import click

from guardrails.cli import _reconcile
from guardrails.cli._findings import as_table, as_text
from guardrails.cli._missing import missing
from guardrails.cli._options import as_json
from guardrails.cli._status_page import NOT_A_PAGE, StatusPageError, read_page, status_address
from guardrails.diagnosis.findings import Finding, judge
from guardrails.diagnosis.service_page import Pool, of_other_processes, past_locks, pools_of, unjoined
from guardrails.diagnosis.tables import Table, tables_of
from guardrails.errors import ConfigurationError

__all__ = ["diagnose"]

_BAD_URL = "this is no URL of a server, such as postgresql://user@host/name or redis://host:6379"
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
@click.option(
    "--status",
    "statuses",
    multiple=True,
    metavar="URL",
    help="The status pages of the service, one for each process: names the lines that hold and wait.",
)
@click.option(
    "--all",
    "tables",
    is_flag=True,
    help="Prints the sessions, the connections by application and the long statements, too. "
    "If the URL names a database: the sessions of that one.",
)
@click.option("--show-sql", is_flag=True, help="With --all: the texts of statements, which may hold values.")
@click.option(
    "--fleet", metavar="URL", help="The store of a fleet: compares what its workers report with the server."
)
@click.option("--name", metavar="FLEET", help="The name of the fleet, if the store has several.")
@_reconcile.options
@as_json
def diagnose(
    *,
    url: str | None,
    slow: float,
    statuses: tuple[str, ...],
    tables: bool,
    show_sql: bool,
    fleet: str | None,
    name: str | None,
    as_json: bool,
    **whose: str | None,
) -> None:
    """Runs the command."""
    if url is None:
        raise click.UsageError("say which server: a URL, better in the environment variable DATABASE_URL")
    if show_sql and not tables:
        raise click.UsageError("--show-sql shows the statements of the tables: it needs --all")
    if fleet is None and any((name, *whose.values())):
        raise click.UsageError("--name, --budget, --role and --application need --fleet")
    if fleet is not None and url.startswith(_CACHES):
        raise click.UsageError("--fleet compares with a database, and this URL is that of a cache")
    store = None if fleet is None else _reconcile.open_store(fleet)
    read = partial(_pages, [status_address(each) for each in statuses])
    if url.startswith(_CACHES):
        findings = read().findings
        answer = _ask_cache(url, slow, tables=tables)
        answer.findings.extend(findings)
    else:
        answer = _ask_database(url, slow, read, tables=tables, show_sql=show_sql)
        if store is not None:
            more = _reconcile.budget_against_server(store, url, fleet=name, **whose)
            answer.findings.extend(each for each in more if each not in answer.findings)
    _print(answer, as_json=as_json)
    sys.exit(1 if answer.findings else 0)


@dataclass
class _Answer:
    """What there is to print.

    Attributes:
        product: The name of the server.
        findings: Its faults, and those on the status pages.
        unseen: The things that this user may not see.
        tables: The tables behind the findings.
    """

    product: str
    findings: list[Finding]
    unseen: Sequence[str] = ()
    tables: Sequence[Table] = ()


def _print(answer: _Answer, *, as_json: bool) -> None:
    if not as_json:
        parts = [as_text(answer.product, answer.findings, answer.unseen), *map(as_table, answer.tables)]
        print("\n\n".join(parts))
        return
    printed: dict[str, object] = {
        "product": answer.product,
        "findings": [dataclasses.asdict(each) for each in answer.findings],
        "unseen": answer.unseen,
    }
    if answer.tables:
        printed["tables"] = {
            table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            for table in answer.tables
        }
    print(json.dumps(printed))


class _Pages(NamedTuple):
    """The content of the status pages.

    Attributes:
        pools: The pools.
        findings: The pools that have no connection left, and unreadable pages.
        past: The waits for locks of the last minute.
    """

    pools: list[Pool]
    findings: list[Finding]
    past: list[Finding]


def _pages(addresses: Sequence[str]) -> _Pages:
    pools: list[Pool] = []
    problems: list[str] = []
    past: list[Finding] = []
    for number, address in enumerate(addresses, 1):
        try:
            page = read_page(address)
            pools += pools_of(page)
            past += past_locks(page, time.time())
        except StatusPageError as error:
            problems.append(f"status page {number}: {error}")
        except (KeyError, TypeError, ValueError, AttributeError):
            problems.append(f"status page {number}: {NOT_A_PAGE}")
    advice = "without it the lines of the service are unknown"
    unread = [Finding("status_page", problem, (), advice) for problem in problems]
    return _Pages(pools, [each for pool in pools for each in pool.findings()] + unread, past)


def _ask_database(
    url: str, slow: float, read: Callable[[], _Pages], *, tables: bool, show_sql: bool
) -> _Answer:
    try:  # before the pages are read: it takes half a second, in which connections come and go
        from guardrails.diagnosis.databases import answer, ask  # noqa: PLC0415 - of an extra
    except ImportError:
        missing("sqlalchemy")
    for _ in range(2):  # again if a connection was replaced between the two readings
        pages = read()
        try:
            address, facts = answer(url, lambda at: ask(at, statements=show_sql))
        except ConfigurationError as error:
            raise click.UsageError(f"diagnose: {error}") from error
        except ValueError:
            raise click.UsageError(_BAD_URL) from None
        if isinstance(facts, Finding):
            return _Answer(address.get_backend_name(), [facts, *pages.findings])
        own = {
            pid: location for pool in pages.pools for pid, location in pool.locations(facts.sessions).items()
        }
        lost = tuple(unjoined(pages.pools, len(own), hidden=bool(facts.unseen)))
        findings = judge(facts, slow, own)
        past = [] if any(each.kind == "locks" for each in findings) else pages.past
        found = _Answer(
            facts.product,
            [*findings, *past, *pages.findings],
            (*facts.unseen, *lost, *of_other_processes(pages.pools, facts.sessions, own)),
            tables_of(facts, slow, database=address.database, show_sql=show_sql) if tables else (),
        )
        if not lost:
            break
    return found


def _ask_cache(url: str, slow: float, *, tables: bool) -> _Answer:
    try:
        from redis import RedisError  # noqa: PLC0415 - of an extra

        from guardrails.diagnosis.caches import ask, why_not  # noqa: PLC0415 - likewise
    except ImportError:
        missing("redis")
    url = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
    try:
        return _Answer(*ask(url, slow, tables=tables))
    except (RedisError, OSError) as error:
        return _Answer("redis", [why_not(error, url)])
    except (ValueError, TypeError):  # an invalid port, an unknown option
        raise click.UsageError(_BAD_URL) from None
