"""All deadlines of an event loop with one timer handle. Depends on asyncio; must not import calls.

`asyncio.timeout` costs 5 us a call, because each call schedules and cancels a handle of its own. Most
deadlines never come, so one handle for each loop is enough. It runs at the earliest deadline, fires the
timers that are due, and is scheduled again for the earliest of the others.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections.abc import Set as AbstractSet
from typing import ClassVar

from guardrails._runtime.scope import Client

__all__ = ["LoopTimers", "Timer", "timers", "timers_of"]


_log = logging.getLogger("guardrails")


class Timer:
    """An action at a time on an event loop, unless it is disarmed before.

    Attributes:
        due: The time by the loop's clock. Each subclass has a slot for it.
    """

    __slots__ = ()

    due: float

    def is_for(self, clients: AbstractSet[Client]) -> bool:  # noqa: ARG002
        """True if the action ends work of one of these clients, and may be run at once when it leaves."""
        return False

    def note_client_left(self) -> None:
        """Is called before the action is run because the client has left."""

    def fire(self) -> float | None:
        """Runs the action. Returns the loop time of the next one, or None for none."""
        raise NotImplementedError


class LoopTimers:
    """The armed timers of one loop; used only from its thread.

    Attributes:
        monotonic: True if the loop's time is `time.monotonic`, so that a deadline need not be converted.
        armed: The armed timers, in no order.
        planned: The time of the next check for due timers.
        latest: The loop that was used last, and its timers, as most processes have one loop. It is a pair, so
            that no thread reads one loop with the timers of another.
    """

    latest: ClassVar[tuple[asyncio.AbstractEventLoop | None, LoopTimers | None]] = (None, None)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.monotonic = type(loop).time is asyncio.BaseEventLoop.time
        self._loop = weakref.ref(loop)
        self.armed: dict[Timer, None] = {}
        self.planned = math.inf
        self._handle: asyncio.TimerHandle | None = None
        self._left: set[Client] = set()

    def arm(self, timer: Timer, delay: float) -> None:
        """Fires a timer in ``delay`` seconds."""
        loop = self._loop()
        assert loop is not None, "a timer is armed on a running loop"  # noqa: S101
        timer.due = loop.time() + delay  # type: ignore[misc] # a slot of each subclass
        self.armed[timer] = None
        if timer.due < self.planned:
            self.plan(loop, timer.due)

    def end_work_of(self, client: Client) -> None:
        """Fires the timers of a client's work as soon as the loop runs.

        Of many clients that leave together the timers are looked through once.
        """
        loop = self._loop()
        assert loop is not None, "a client leaves while its loop runs"  # noqa: S101
        if not self._left:
            loop.call_soon(self._end_work, loop)
        self._left.add(client)

    def _end_work(self, loop: asyncio.AbstractEventLoop) -> None:
        left, self._left = self._left, set()
        now = loop.time()
        ended = [timer for timer in self.armed if timer.is_for(left)]
        for timer in ended:
            timer.note_client_left()
            timer.due = min(timer.due, now)  # type: ignore[misc] # a slot of each subclass
        if ended:
            self.plan(loop, min(now, self.planned))

    def disarm(self, timer: Timer) -> None:
        """Removes a timer; does nothing if it is not armed."""
        self.armed.pop(timer, None)

    def plan(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """Checks for due timers at a loop time."""
        if self._handle is not None:
            self._handle.cancel()
        self.planned = at
        self._handle = loop.call_at(at, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._handle = None
        for timer in [timer for timer in self.armed if timer.due <= now]:
            if timer not in self.armed:
                continue  # disarmed by a timer that fired before it
            try:
                again = timer.fire()
            except Exception:  # noqa: BLE001 - logged; the other timers of the loop must fire all the same
                _log.exception("a deadline could not be kept")
                again = None
            if again is None:
                self.armed.pop(timer, None)
            else:
                timer.due = again  # type: ignore[misc] # a slot of each subclass
        self.planned = math.inf
        soonest = min((timer.due for timer in self.armed), default=math.inf)
        if soonest < math.inf:
            self.plan(loop, soonest)


# A weak reference: a handle refers to its loop, so a strong one would keep each loop that was closed with a
# handle alive. The loop itself keeps its timers while a handle is scheduled.
_everywhere: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[LoopTimers]] = (
    weakref.WeakKeyDictionary()
)


def timers() -> LoopTimers:
    """The timers of the running loop."""
    return timers_of(asyncio.get_running_loop())


def timers_of(loop: asyncio.AbstractEventLoop) -> LoopTimers:
    """The timers of a loop, which must be the running loop."""
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
