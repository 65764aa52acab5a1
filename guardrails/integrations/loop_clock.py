"""A clock for guards whose calls wait on one event loop. Depends on asyncio; must not import guards.

A guard measures a statement until the event loop resumes its task. While other code blocks the loop, every
statement looks slow, and the circuit of a healthy database opens. This clock does not count such time.
"""

from __future__ import annotations

import asyncio
import math
import time
import weakref

__all__ = ["LoopClock"]

_monotonic = time.monotonic

BEAT = 0.05
"""Seconds between two checks of the loop's delay, and the delay that is still counted as time."""

LONGEST = 10.0
"""Maximum time in seconds that one blocked period is not counted for: the loop may never resume."""

IDLE_BEATS = 400
"""Checks without a reading of the clock after which they stop; the next reading starts them again."""

_Loop = asyncio.AbstractEventLoop


class LoopClock:
    """A monotonic clock that stops while the event loop is blocked.

    ::

        db = protect(async_engine, clock=LoopClock())

    The clock stops at most 0.1 s after the loop last ran its callbacks. It resumes when the loop runs again,
    or after 10 s. It never goes back. All threads see the same time.

    The clock belongs to the loop that reads it first, and moves to the next loop that reads it. Do not share
    it between loops that run at the same time.
    """

    __slots__ = ("_idle", "_loop", "_state")

    def __init__(self) -> None:
        # The latest time of the loop's next check, and the seconds not counted so far. They are one tuple, so
        # another thread never sees one without the other.
        self._state = math.inf, 0.0
        self._idle = 0
        self._loop: weakref.ref[_Loop] | None = None

    def __call__(self) -> float:
        """Returns the time in seconds."""
        due, lost = self._state
        now = _monotonic()
        self._idle = 0
        if now <= due < math.inf:
            return now - lost
        running = asyncio._get_running_loop()  # noqa: SLF001 - public in all but name; get_running_loop() raises
        if running is not None and (due == math.inf or self._loop is None or self._loop() is not running):
            self._plan(running, lost)
            return now - lost
        return now - lost - min(max(0.0, now - due), LONGEST)

    def _plan(self, loop: _Loop, lost: float) -> None:
        self._loop = weakref.ref(loop)
        self._state = state = _monotonic() + 2 * BEAT, lost
        loop.call_later(BEAT, self._beat, loop, state)

    def _beat(self, loop: _Loop, state: tuple[float, float]) -> None:
        if self._state is not state:
            return  # the clock belongs to another loop by now
        due, lost = state
        lost += min(max(0.0, _monotonic() - due), LONGEST)
        self._idle += 1
        if self._idle > IDLE_BEATS:
            self._state = math.inf, lost
        else:
            self._plan(loop, lost)
