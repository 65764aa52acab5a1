"""Ctrl-C, the same at every moment of every command: no traceback, and exit code 130."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["INTERRUPTED", "end_at_once", "interruptible"]

INTERRUPTED = 128 + signal.SIGINT
"""What shells say of a program that was ended by Ctrl-C."""


def end_at_once() -> None:
    """From now on Ctrl-C ends the process as it is. For as long as it has nothing to clean up.

    While modules are imported a KeyboardInterrupt may be raised anywhere: in the import system's own
    callbacks, which print it and go on, or in code that catches everything. Nothing is raised here.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else ignored, as under nohup
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C a KeyboardInterrupt inside the block, so that what was opened is closed; then exits."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, before)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, before)
