"""Ctrl-C in every command: no traceback, and exit code 130. Depends on the standard library alone."""

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
    """Makes Ctrl-C end the process at once, in the block and at exit, where nothing has to be cleaned up.

    The handler raises no KeyboardInterrupt: during an import it might be raised in the import system's own
    callbacks, which print it and continue, or in code that catches every exception.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as under nohup
        yield
        return
    atexit.register(_handle)
    _handle()
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # an interrupted run of the demo ignores it
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _handle() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C a KeyboardInterrupt inside the block, so that open resources are closed; then exits."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    except KeyboardInterrupt:
        before = signal.SIG_IGN  # a second Ctrl-C must not change the exit code
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, before)
