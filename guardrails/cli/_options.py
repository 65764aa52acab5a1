"""Options that several commands have. Depends on click alone."""

from __future__ import annotations

import click

__all__ = ["as_json", "max_connections", "workers"]

workers = click.option(
    "--workers", type=int, default=1, show_default=True, metavar="N", help="Processes of the service."
)

max_connections = click.option(
    "--max-connections", type=int, metavar="N", help="The connections that the database server allows."
)

as_json = click.option("--json", "as_json", is_flag=True, help="Prints one JSON object.")
