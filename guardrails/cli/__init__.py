"""The ``guardrails`` command. Each subcommand has a module of its own, which is imported when it is run.

Imports only light modules before it handles Ctrl-C, from `main` on. Python's own start and the installer's
script come before that.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

_INTERRUPTED = 130  # a literal, because `_interrupts` may not be imported yet


def main() -> None:
    """Entry point of the ``guardrails`` script; exits 0 fine, 1 findings, 2 usage, 130 interrupted."""
    try:
        from guardrails.cli._interrupts import end_at_once  # noqa: PLC0415 - Ctrl-C must be caught while importing

        with end_at_once():
            _run()
    except KeyboardInterrupt:
        os._exit(_INTERRUPTED)


def _run() -> None:
    try:
        from guardrails.cli._commands import commands  # noqa: PLC0415 - only here can a missing extra be one clear line
    except ImportError as error:
        if error.name != "click":
            raise
        print("guardrails: the command line needs: pip install 'guardrails-db[cli]'", file=sys.stderr)
        sys.exit(1)
    commands(prog_name="guardrails")
