"""Deadlines on an event loop, many for the price of one timer. Knows moments, not calls.

`asyncio.timeout` costs 5 us a call, because each sets and cancels a timer of its own. Most deadlines
never fire, so one timer per loop is enough: it sleeps until the earliest deadline that was armed,
rings what is due, and plans for the earliest of the rest.
"""

from __future__ import annotations

import asyncio
import math
import threading
import weakref

__all__ = ["Alarm", "Alarms", "alarms"]


class Alarm:
    """Something to do at a moment, unless it is disarmed first.

    Attributes:
        at: The moment, in the loop's own time.
    """

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = math.inf

    def ring(self) -> float | None:
        """Time is up. Returns the loop time at which to ring again, or None to be disarmed."""
        raise NotImplementedError


class Alarms:
    """The armed alarms of one loop; used only from its thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._armed: dict[Alarm, None] = {}
        self._planned = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def arm(self, alarm: Alarm, delay: float) -> None:
        """Rings in ``delay`` seconds."""
        loop = self._loop()
        assert loop is not None, "an alarm is armed on a running loop"  # noqa: S101
        alarm.at = loop.time() + delay
        self._armed[alarm] = None
        if alarm.at < self._planned:
            self._plan(loop, alarm.at)

    def disarm(self, alarm: Alarm) -> None:
        """Forgets an alarm; one that is not armed is left alone."""
        self._armed.pop(alarm, None)

    def _plan(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._planned = at
        self._timer = loop.call_at(at, self._sweep)

    def _sweep(self) -> None:
        loop = self._loop()
        if loop is None:
            return
        now = loop.time()
        self._timer = None
        for alarm in [alarm for alarm in self._armed if alarm.at <= now]:
            if alarm not in self._armed:
                continue  # disarmed by one that rang before it
            again = alarm.ring()
            if again is None:
                self._armed.pop(alarm, None)
            else:
                alarm.at = again
        self._planned = math.inf
        if self._armed:
            self._plan(loop, min(alarm.at for alarm in self._armed))


class _Here(threading.local):
    loop: asyncio.AbstractEventLoop | None = None
    alarms: Alarms | None = None


_here = _Here()
# A planned timer refers to its loop, so a strong reference here would keep every loop that was closed
# with one alive for ever. The loop itself keeps its alarms for as long as one of them is planned.
_everywhere: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Alarms]] = (
    weakref.WeakKeyDictionary()
)


def alarms() -> Alarms:
    """The alarms of the running loop."""
    loop = asyncio.get_running_loop()
    if _here.loop is loop and _here.alarms is not None:
        return _here.alarms
    known = _everywhere.get(loop)
    found = None if known is None else known()
    if found is None:
        found = Alarms(loop)
        _everywhere[loop] = weakref.ref(found)
    _here.loop, _here.alarms = loop, found
    return found
