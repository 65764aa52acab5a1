"""Deadlines on an event loop, many for the price of one timer. Knows moments, not calls.

`asyncio.timeout` costs 5 us a call, because each sets and cancels a timer of its own. Most deadlines
never fire, so one timer per loop is enough: it sleeps until the earliest deadline that was armed,
rings what is due, and plans for the earliest of the rest.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from typing import ClassVar

__all__ = ["LoopTimers", "Timer", "timers", "timers_of"]


_log = logging.getLogger("guardrails")


class Timer:
    """Something to do at a moment, unless it is disarmed first.

    Attributes:
        due: The moment, in the loop's own time. Each kind of timer has a slot for it.
    """

    __slots__ = ()

    due: float

    def fire(self) -> float | None:
        """Time is up. Returns the loop time at which to ring again, or None to be disarmed."""
        raise NotImplementedError


class LoopTimers:
    """The armed timers of one loop; used only from its thread.

    Attributes:
        monotonic: Whether the loop's time is `time.monotonic`, so that a deadline need not be converted.
        armed: The timers that wait for their moment, in no order.
        planned: When they will be looked through.
        latest: The loop that was asked for last, and its timers: most processes have one. A pair, so that no
            thread reads a loop with another one's timers.
    """

    latest: ClassVar[tuple[asyncio.AbstractEventLoop | None, LoopTimers | None]] = (None, None)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.monotonic = type(loop).time is asyncio.BaseEventLoop.time
        self._loop = weakref.ref(loop)
        self.armed: dict[Timer, None] = {}
        self.planned = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def arm(self, alarm: Timer, delay: float) -> None:
        """Rings in ``delay`` seconds."""
        loop = self._loop()
        assert loop is not None, "an alarm is armed on a running loop"  # noqa: S101
        alarm.due = loop.time() + delay  # type: ignore[misc] # a slot of each subclass
        self.armed[alarm] = None
        if alarm.due < self.planned:
            self.plan(loop, alarm.due)

    def disarm(self, alarm: Timer) -> None:
        """Forgets an timer; one that is not armed is left alone."""
        self.armed.pop(alarm, None)

    def plan(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """Looks through the armed timers at a moment of the loop's time."""
        if self._timer is not None:
            self._timer.cancel()
        self.planned = at
        self._timer = loop.call_at(at, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer = None
        for alarm in [alarm for alarm in self.armed if alarm.due <= now]:
            if alarm not in self.armed:
                continue  # disarmed by one that rang before it
            try:
                again = alarm.fire()
            except Exception:  # noqa: BLE001 - logged; the other deadlines of the loop must not hang on this one
                _log.exception("a deadline could not be kept")
                again = None
            if again is None:
                self.armed.pop(alarm, None)
            else:
                alarm.due = again  # type: ignore[misc] # likewise
        self.planned = math.inf
        if self.armed:
            self.plan(loop, min(alarm.due for alarm in self.armed))


# A planned timer refers to its loop, so a strong reference here would keep every loop that was closed
# with one alive for ever. The loop itself keeps its timers for as long as one of them is planned.
_everywhere: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[LoopTimers]] = (
    weakref.WeakKeyDictionary()
)


def timers() -> LoopTimers:
    """The timers of the running loop."""
    return timers_of(asyncio.get_running_loop())


def timers_of(loop: asyncio.AbstractEventLoop) -> LoopTimers:
    """The timers of a loop, which must be the running one."""
    last, found = LoopTimers.latest
    if last is loop and found is not None:
        return found
    known = _everywhere.get(loop)
    found = None if known is None else known()
    if found is None:
        found = LoopTimers(loop)
        _everywhere[loop] = weakref.ref(found)
    LoopTimers.latest = (loop, found)
    return found
