"""Detects pauses in which this whole process did not run. Depends on nothing; must not import guards.

After SIGSTOP, ``docker pause``, a debugger or a frozen function, every call in flight seems to have taken
seconds. A thread that sleeps for a moment, again and again, wakes up late for the same reason and notes the
pause. It runs while calls are made and for a short time after.
"""

from __future__ import annotations

import os
import queue
import time
from contextlib import suppress
from typing import NamedTuple

from guardrails._runtime.threads import daemon

__all__ = ["BEAT", "PauseDetector", "ProcessPause", "pause_detector"]

BEAT = 0.25
"""Seconds between two beats."""

_LATE = 1.0
"""Seconds. A longer time between two beats is a pause of the process and not a busy machine."""

_LONGEST = 60.0
"""Longest pause in seconds. Of a longer one only the end counts, as connections may have been lost in it."""


class ProcessPause(NamedTuple):
    """A time in which the process did not run, by `time.monotonic`."""

    since: float
    until: float


class PauseDetector:
    """Reads the clock again and again in a daemon thread, once woken.

    Attributes:
        last: Time of the last beat; None while the thread sleeps.
        gap: The latest pause.
    """

    def __init__(self) -> None:
        self.last: float | None = None
        self.gap = ProcessPause(0.0, 0.0)
        self._until = 0.0
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._started: dict[int, object] = {}  # the queue of the thread, by process id

    def wake(self, until: float) -> None:
        """Keeps the thread beating until a time on `time.monotonic`."""
        self._until = max(self._until, until)
        if os.getpid() not in self._started:  # first use, or a child process, which has no such thread
            self._start(os.getpid())
        if self.last is None:
            self._wakeups.put(None)  # allowed in a signal handler and in a finaliser

    def _start(self, process: int) -> None:
        # Looked up here: gevent replaces the class together with the threads that wait for it.
        wakeups = queue.SimpleQueue[None]()
        if self._started.setdefault(process, wakeups) is not wakeups:
            return  # another thread came first
        self._wakeups = wakeups
        self.last = None
        # At exit and in a subinterpreter no thread can be started; pauses are then not detected.
        with suppress(RuntimeError):
            daemon("guardrails-pulse", self._run, wakeups).start()

    def latest(self, now: float) -> ProcessPause:
        """The latest pause, including one that ends just now."""
        last = self.last
        if last is not None and now - last > _LATE:
            return ProcessPause(max(last, now - _LONGEST), now)
        return self.gap

    def missed(self, seconds: float) -> bool:
        """True if a pause overlaps the last ``seconds``."""
        now = time.monotonic()
        gap = self.latest(now)
        return gap.until > gap.since and now - gap.until < seconds

    def _run(self, wakeups: queue.SimpleQueue[None]) -> None:
        while wakeups is self._wakeups:
            if self.last is None:
                wakeups.get()
            self._beat(time.monotonic())
            with suppress(queue.Empty):
                wakeups.get(timeout=BEAT)

    def _beat(self, now: float) -> None:
        last = self.last
        if last is not None and now - last > _LATE:
            self.gap = ProcessPause(max(last, now - _LONGEST), now)
        self.last = now if now < self._until else None


pause_detector = PauseDetector()
"""The detector of this process."""
