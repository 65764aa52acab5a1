"""``guardrails doctor``: looks at a service's settings before anything goes wrong.

Knows flags, and how an application is imported; what is wrong with it knows `guardrails.diagnosis.service`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import sys
import traceback

import click

from guardrails.cli._telling import as_text
from guardrails.diagnosis.service import Surroundings, examine
from guardrails.errors import ConfigurationError

__all__ = ["doctor"]


@click.command(help="Looks for what will go wrong: unprotected engines, limits in the wrong order.")
@click.option("--app", "where", required=True, metavar="MODULE:ATTR", help="The application.")
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
    workers: int,
    threads: int,
    worker_timeout: float | None,
    max_connections: int | None,
    as_json: bool,
) -> None:
    """The command."""
    try:
        around = Surroundings(workers, threads, worker_timeout, max_connections)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    findings = examine(_load(where), around)
    if as_json:
        print(json.dumps({"app": where, "findings": [dataclasses.asdict(each) for each in findings]}))
    else:
        print(as_text(where, findings))
    sys.exit(1 if findings else 0)


def _load(where: str) -> object:
    module, _, attribute = where.partition(":")
    if not module or not attribute:
        raise click.UsageError(f"--app must be MODULE:ATTR, such as shop.main:app, got {where!a}")
    sys.path.insert(0, "")  # as servers do
    try:
        app: object = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # noqa: BLE001 - whatever the service's modules raise
        # Its message may show what it could not connect to, password included.
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise click.UsageError(
            f"--app {where!a} cannot be imported: {type(error).__name__} in {at.name}, line {at.lineno}"
        ) from None
    return app
