"""``guardrails doctor``: checks a service's settings before an outage.

Depends on `guardrails.cli._service` to start the service, and on `guardrails.diagnosis.service` to judge it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from guardrails.cli._findings import as_text
from guardrails.cli._interrupts import interruptible
from guardrails.cli._missing import missing
from guardrails.cli._options import as_json, max_connections, workers
from guardrails.diagnosis.findings import Finding
from guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from guardrails.diagnosis.surroundings import Surroundings

__all__ = ["doctor"]

_BAD_URL = "--database-url must be the URL of a server, such as postgresql://user@host/name"


@click.command(
    short_help="Finds what will go wrong with a service.",
    help="Finds what will go wrong with a service: unprotected engines, limits in the wrong order.",
)
@click.option("--app", "where", required=True, metavar="MODULE:ATTR", help="The application.")
@click.option("--factory", is_flag=True, help="The attribute is a function that makes the application.")
@click.option(
    "--lifespan/--no-lifespan",
    default=True,
    show_default=True,
    help="Starts the application's lifespan for the check, and stops it again.",
)
@workers
@click.option(
    "--threads",
    type=int,
    default=40,
    show_default=True,
    metavar="N",
    help="Threads of one process for synchronous endpoints; 40 are Starlette's.",
)
@click.option(
    "--worker-timeout",
    type=float,
    metavar="SECONDS",
    help="Time after which a worker is killed; gunicorn's default is 30.",
)
@max_connections
@click.option(
    "--database-url",
    "--url",
    "url",
    metavar="URL",
    help="The database server: reads its limit of connections and its idle timeout.",
)
@as_json
def doctor(
    *,
    where: str,
    factory: bool,
    lifespan: bool,
    workers: int,
    threads: int,
    worker_timeout: float | None,
    max_connections: int | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Runs the command."""
    from guardrails.cli import _service  # noqa: PLC0415 - imports asyncio, which no other command needs
    from guardrails.diagnosis.service import examine  # noqa: PLC0415 - imports guards
    from guardrails.diagnosis.surroundings import Surroundings  # noqa: PLC0415 - likewise

    try:
        around = Surroundings(workers, threads, worker_timeout, max_connections)
        around, problems = _with_server(around, url)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    if not all(where.partition(":")):
        raise click.UsageError(f"--app must be MODULE:ATTR, such as shop.main:app, got {where!a}")
    try:
        app = _service.load(where, factory=factory)
        if lifespan:
            with interruptible():
                findings, problem = _service.while_started(app, lambda: examine(app, around))
            findings += _shutdown(problem)
        else:
            findings = examine(app, around)
    except _service.ServiceError as error:
        raise click.UsageError(f"--app {where!a} {error}") from None
    findings += problems
    if as_json:
        print(json.dumps({"app": where, "findings": [dataclasses.asdict(each) for each in findings]}))
    else:
        print(as_text(where, findings))
    sys.exit(1 if findings else 0)


def _with_server(around: Surroundings, url: str | None) -> tuple[Surroundings, list[Finding]]:
    """Adds the limits of the server of a URL; a number that was given as an option stays."""
    if url is None:
        return around, []
    try:
        from guardrails.diagnosis.databases import answer, read_limits  # noqa: PLC0415 - of an extra
        from guardrails.fleet import _uses  # noqa: PLC0415 - with it
    except ImportError:
        missing("sqlalchemy")
    try:
        address, limits = answer(url, read_limits)
    except ConfigurationError:
        raise
    except ValueError:
        raise click.UsageError(_BAD_URL) from None
    if isinstance(limits, Finding):
        return around, [limits]
    changes: dict[str, Any] = {"idle_timeout": limits.idle_timeout, "address": address}
    changes |= {"role": limits.role, "reported": _uses.reported}
    if around.max_connections is None:
        changes |= {"max_connections": limits.connections, "reserved": limits.reserved}
    return dataclasses.replace(around, **changes), []


def _shutdown(problem: str | None) -> list[Finding]:
    if problem is None:
        return []
    return [
        Finding(
            "shutdown",
            f"its lifespan does not end well: {problem}",
            (),
            "what it holds is lost, not closed",
        )
    ]
