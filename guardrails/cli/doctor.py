"""``guardrails doctor``: looks at a service's settings before anything goes wrong.

Depends on flags; `guardrails.cli._service` starts the service, `guardrails.diagnosis.service` judges it.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from guardrails.cli._findings import as_text
from guardrails.cli._interrupts import interruptible
from guardrails.diagnosis.findings import Finding
from guardrails.errors import ConfigurationError

__all__ = ["doctor"]


@click.command(
    short_help="Looks at a service for what will go wrong.",
    help="Looks for what will go wrong: unprotected engines, limits in the wrong order.",
)
@click.option("--app", "where", required=True, metavar="MODULE:ATTR", help="The application.")
@click.option("--factory", is_flag=True, help="The attribute is a function that makes the application.")
@click.option(
    "--lifespan/--no-lifespan",
    default=True,
    show_default=True,
    help="Starts the application's lifespan, looks, and stops it again.",
)
@click.option("--workers", type=int, default=1, show_default=True, metavar="N", help="Processes.")
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
    help="After which a worker is killed; gunicorn's default is 30.",
)
@click.option("--max-connections", type=int, metavar="N", help="What the database server allows.")
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object.")
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
    """The command."""
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
                findings, last_guard_error = _service.while_started(app, lambda: examine(app, around))
            findings += _shutdown(last_guard_error)
        else:
            findings = examine(app, around)
    except _service.ServiceError as error:
        raise click.UsageError(f"--app {where!a} {error}") from None
    if as_json:
        print(json.dumps({"app": where, "findings": [dataclasses.asdict(each) for each in findings]}))
    else:
        print(as_text(where, findings))
    sys.exit(1 if findings else 0)


def _shutdown(last_guard_error: str | None) -> list[Finding]:
    if last_guard_error is None:
        return []
    return [
        Finding(
            "shutdown",
            f"its lifespan does not end well: {last_guard_error}",
            (),
            "what it holds is lost, not closed",
        )
    ]
