"""Ctrl-C, the same at every moment of every command: no traceback, and exit code 130."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["INTERRUPTED", "end_at_once", "interruptible"]

INTERRUPTED = 128 + signal.SIGINT
"""The exit code by which shells report a program ended by Ctrl-C."""


@contextmanager
def end_at_once() -> Iterator[None]:
    """Makes Ctrl-C end the process as it is, in the block and at exit, where there is nothing to clean up.

    While modules are imported a KeyboardInterrupt may be raised anywhere: in the import system's own
    callbacks, which print it and go on, or in code that catches everything. Nothing is raised here.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as under nohup
        yield
        return
    atexit.register(_take)
    _take()
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as after an interrupted run of the demo
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _take() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
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
        before = signal.SIG_IGN  # a second one must not change the answer
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, before)
