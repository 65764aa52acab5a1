"""The commands by their names. Depends on click alone; must import a command only to run it."""

from __future__ import annotations

import sys
from importlib import import_module

import click

import guardrails
from guardrails.cli._interrupts import INTERRUPTED
from guardrails.cli._usage import Commands

__all__ = ["commands"]

_NAMES = ("alerts", "demo", "diagnose", "doctor", "fleet", "grafana", "shadow", "simulate", "size", "watch")


class _Commands(Commands):
    """Each command is the attribute of its name in the module of that name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click calls it
        """Lists the names, in the order of the help."""
        return [*_NAMES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Imports a command."""
        if cmd_name not in _NAMES:
            return None
        command: click.Command = getattr(import_module(f"guardrails.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Runs a command. Ctrl-C exits with 130; click alone would print "Aborted!" and exit with 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


@click.group(cls=_Commands, help="Keeps a web service up when its database slows down.")
@click.version_option(guardrails.__version__, prog_name="guardrails", message="%(prog)s %(version)s")
def commands() -> None:
    """Does nothing; the group's commands do the work."""
