"""``guardrails grafana``: prints a dashboard for Grafana. Must not read a service."""

from __future__ import annotations

import json

import click

__all__ = ["grafana"]


@click.command(
    short_help="Prints a dashboard for Grafana.",
    help="Prints a dashboard for Grafana as JSON, for the metrics of GuardCollector in a Prometheus.",
)
@click.option("--title", default="guardrails", show_default=True, metavar="TEXT", help="The title.")
@click.option("--json", "as_json", is_flag=True, help="Prints it on one line; it is JSON in any case.")
def grafana(*, title: str, as_json: bool) -> None:
    """Runs the command."""
    from guardrails.cli._dashboard import dashboard  # noqa: PLC0415 - imports guards

    print(json.dumps(dashboard(title), indent=None if as_json else 2))
