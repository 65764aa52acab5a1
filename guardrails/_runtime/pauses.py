"""The times in which this process stood still and could not read its clock. Knows no guards and no calls.

A process that is stopped (SIGSTOP, ``docker pause``, a debugger, a frozen function) finds at its thaw that
seconds have passed, and that every call under way took them. A thread that only sleeps a moment, again and
again, was late for the same reason, and notes it. It runs while calls are made and for a while after.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from contextlib import suppress
from typing import NamedTuple

__all__ = ["BEAT", "PauseDetector", "ProcessPause", "pause_detector"]

BEAT = 0.25
"""Seconds between two beats."""

_LATE = 1.0
"""Seconds between two beats that are no longer a busy machine's, but a time in which nobody could look."""

_MOST = 60.0
"""Seconds of a gap that are forgiven. After a longer one the connections deserve a new look."""


class ProcessPause(NamedTuple):
    """A time in which nobody could look."""

    since: float
    until: float


class PauseDetector:
    """Beats in a thread of its own, once woken.

    Attributes:
        last: When it beat last; None while it sleeps.
        gap: The latest gap.
    """

    def __init__(self) -> None:
        self.last: float | None = None
        self.gap = ProcessPause(0.0, 0.0)
        self._until = 0.0
        self._pid = 0
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def wake(self, until: float) -> None:
        """Sees to it that the pulse beats until some moment, on `time.monotonic`."""
        self._until = max(self._until, until)
        if self._pid != os.getpid():  # the first time, or in the child of a fork, which has no such thread
            self._pid = os.getpid()
            # Looked up now: gevent replaces it together with the kind of thread that waits for it.
            self._bell = queue.SimpleQueue()
            self.last = None
            # No thread is to be had at the exit, and in a second interpreter: then there is no pulse.
            with suppress(RuntimeError):
                threading.Thread(
                    target=self._run, args=(self._bell,), daemon=True, name="guardrails-pulse"
                ).start()
        if self.last is None:
            self._bell.put(None)  # legal in a signal handler, and where the collector runs

    def latest(self, now: float) -> ProcessPause:
        """The latest time in which nobody could look, one that ends just now included."""
        last = self.last
        if last is not None and now - last > _LATE:
            return ProcessPause(max(last, now - _MOST), now)
        return self.gap

    def missed(self, seconds: float) -> bool:
        """True if nobody could look for a part of the last seconds."""
        now = time.monotonic()
        gap = self.latest(now)
        return gap.until > gap.since and now - gap.until < seconds

    def _run(self, bell: queue.SimpleQueue[None]) -> None:
        while bell is self._bell:
            if self.last is None:
                bell.get()
            self._beat(time.monotonic())
            with suppress(queue.Empty):
                bell.get(timeout=BEAT)

    def _beat(self, now: float) -> None:
        last = self.last
        if last is not None and now - last > _LATE:
            self.gap = ProcessPause(max(last, now - _MOST), now)
        self.last = now if now < self._until else None


pause_detector = PauseDetector()
"""The pulse of this process."""
