"""What the plugins share: whether a run is guarded, and how many things it guards, for the test to read."""

from __future__ import annotations

import functools
import os
import pathlib

__all__ = ["GUARDED", "after_init", "count", "pytest_sessionfinish"]

GUARDED = "SUITE_GUARDS" in os.environ

_guards = 0


def count():
    """Counts one more guarded thing."""
    global _guards  # noqa: PLW0603 - the one counter of a process
    _guards += 1


def after_init(kind, guard):
    """Calls a function on each new object of a class, in a guarded run only."""
    plain = kind.__init__

    @functools.wraps(plain)
    def init(self, *args, **options):
        plain(self, *args, **options)
        guard(self)

    if GUARDED:
        kind.__init__ = init


def pytest_sessionfinish():
    """Writes the number down; a plugin imports this name."""
    if GUARDED:
        pathlib.Path(os.environ["SUITE_GUARDS"]).write_text(str(_guards))
