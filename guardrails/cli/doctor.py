"""``guardrails doctor``: checks a service's settings before an outage.

Depends on `guardrails.cli._service` to start the service, and on `guardrails.diagnosis.service` to judge it.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from guardrails.cli._findings import as_text
from guardrails.cli._interrupts import interruptible
from guardrails.cli._options import as_json, max_connections, workers
from guardrails.diagnosis.findings import Finding
from guardrails.errors import ConfigurationError

__all__ = ["doctor"]


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
    as_json: bool,
) -> None:
    """Runs the command."""
    from guardrails.cli import _service  # noqa: PLC0415 - imports asyncio, which no other command needs
    from guardrails.diagnosis.service import Surroundings, examine  # noqa: PLC0415 - imports guards

    try:
        around = Surroundings(workers, threads, worker_timeout, max_connections)
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
    if as_json:
        print(json.dumps({"app": where, "findings": [dataclasses.asdict(each) for each in findings]}))
    else:
        print(as_text(where, findings))
    sys.exit(1 if findings else 0)


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
