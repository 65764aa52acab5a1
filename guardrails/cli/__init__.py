"""The ``guardrails`` command: a group that each command joins from a file of its own.

Knows which commands there are; nothing of what they do.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the ``guardrails`` script; exits 0 fine, 1 findings, 2 usage."""
    try:
        import click  # noqa: F401, PLC0415 - only here can a missing extra become one clear line
    except ImportError:
        print("guardrails: the command line needs: pip install 'guardrails-db[cli]'", file=sys.stderr)
        sys.exit(1)
    from guardrails.cli._usage import Commands  # noqa: PLC0415 - needs click
    from guardrails.cli.demo import demo  # noqa: PLC0415 - likewise
    from guardrails.cli.diagnose import diagnose  # noqa: PLC0415 - likewise
    from guardrails.cli.doctor import doctor  # noqa: PLC0415
    from guardrails.cli.size import size  # noqa: PLC0415
    from guardrails.cli.watch import watch  # noqa: PLC0415

    group = Commands("guardrails", help="Keeps a web service up when its database slows down.")
    group.add_command(demo)
    group.add_command(diagnose)
    group.add_command(doctor)
    group.add_command(size)
    group.add_command(watch)
    group(prog_name="guardrails")
