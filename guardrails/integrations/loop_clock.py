"""A clock for guards whose calls wait on one event loop. Knows asyncio and time, no guard.

A statement that is done is not over until the loop comes back to it, and a guard measures to that moment. On
a loop that is busy with something else every statement looks slow, and the circuit of a database that is well
opens.
"""

from __future__ import annotations

import asyncio
import math
import time
import weakref

__all__ = ["LoopClock"]

_monotonic = time.monotonic

BEAT = 0.05
"""Seconds between two looks at how late the loop is; and how late it may be before that is time lost."""

LONGEST = 10.0
"""Seconds that one halt of the loop can excuse. After that time goes on: the loop may never come back."""

IDLE_BEATS = 400
"""Beats that nobody asked for the time, after which there are no more until somebody does."""

_Loop = asyncio.AbstractEventLoop


class LoopClock:
    """Time that passes only while an event loop does.

    ::

        db = protect(async_engine, clock=LoopClock())

    It stands still from 0.1 s at most after the loop last took a turn until it takes the next, for at most
    10 s, and never goes back. So what is left of a statement's duration is the time in which its end would
    have been noticed. It belongs to the loop on which it is asked first, and to the next one when that is
    over; all threads see the same time. Not for several loops that run at once.
    """

    __slots__ = ("_idle", "_loop", "_state")

    def __init__(self) -> None:
        # When the loop should have taken its next turn, and the seconds lost so far: one object, so that
        # another thread never sees one of them without the other.
        self._state = math.inf, 0.0
        self._idle = 0
        self._loop: weakref.ref[_Loop] | None = None

    def __call__(self) -> float:
        """The time in seconds."""
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
            return  # another loop has taken over
        due, lost = state
        lost += min(max(0.0, _monotonic() - due), LONGEST)
        self._idle += 1
        if self._idle > IDLE_BEATS:
            self._state = math.inf, lost
        else:
            self._plan(loop, lost)
