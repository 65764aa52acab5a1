"""``guardrails alerts``: prints alert rules for Prometheus. Depends on the rules; must not read a service."""

from __future__ import annotations

import json

import click

from guardrails.cli._options import as_json

__all__ = ["alerts"]


@click.command(
    short_help="Prints alert rules for Prometheus.",
    help="Prints a file of alert rules for Prometheus, for the metrics of GuardCollector.",
)
@click.option(
    "--runbooks",
    metavar="URL",
    help="The page to which each alert links, with a section of its name; without it alerts have no link.",
)
@as_json
def alerts(*, runbooks: str | None, as_json: bool) -> None:
    """Runs the command."""
    from guardrails.cli._alert_rules import ALERTS, as_yaml, runbook_of  # noqa: PLC0415 - imports guards

    if as_json:
        rules = [each._asdict() | {"runbook_url": runbook_of(each, runbooks)} for each in ALERTS]
        print(json.dumps({"alerts": rules}))
    else:
        print(as_yaml(ALERTS, runbooks))
