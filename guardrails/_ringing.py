"""A scope whose asyncio task is cancelled at its deadline. Knows tasks and loops, no guard."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from guardrails._alarm import Alarm, Alarms, alarms_of
from guardrails._deadline import Scope

__all__ = ["Ringing", "cancel_at"]

_get_running_loop, _current_task = asyncio.get_running_loop, asyncio.current_task


class Ringing(Scope, Alarm):
    """A scope and its alarm in one.

    Attributes:
        armed: Whether the alarm was set. It fills in what only an asyncio call has.
        rung: Whether time was up before the work was over.
        given: Seconds there were when it was armed, where the deadline is an enclosing scope's.
    """

    __slots__ = ("_alarms", "_cancelled_before", "_task", "armed", "due", "given", "rung")

    armed: bool
    rung: bool
    given: float
    _alarms: Alarms
    _cancelled_before: int
    _task: asyncio.Task[Any]

    def arm(self) -> None:
        """Has the running task cancelled at the deadline, which there must be.

        Raises:
            RuntimeError: No task is running.
        """
        loop = _get_running_loop()
        task = _current_task(loop)
        if task is None:
            raise RuntimeError("a guarded call must run inside an asyncio task")
        if self.alarmed == id(task):
            return  # an enclosing call's own alarm rings in this task at that moment
        at = self.at or 0.0
        if self.owner is not self.guard:
            self.given = max(0.0, at - self.clock())
        alarms = alarms_of(loop)
        if not alarms.monotonic or self.clock is not time.monotonic:
            at = loop.time() + max(0.0, at - self.clock())
        self._alarms = alarms
        self._task = task
        self._cancelled_before = task.cancelling()
        self.alarmed = id(task)
        self.due = at
        self.armed = True
        alarms.armed[self] = None
        if at < alarms.planned:
            alarms.plan(loop, at)

    def ring(self) -> None:
        """See Alarm."""
        self.rung = True
        self._task.cancel()

    def silence(self, error: BaseException | None) -> bool:
        """Disarms, and says whether ``error`` is this alarm's own cancellation, which it then takes back.

        A cancellation from outside in the same tick wins. A body that swallowed ours is still late.
        """
        if not self.rung:
            self._alarms.armed.pop(self, None)
            return False
        ours = self._task.uncancel() <= self._cancelled_before
        return ours and (error is None or isinstance(error, asyncio.CancelledError))


def cancel_at(at: float) -> Ringing:
    """Has the running task cancelled at a moment of `time.monotonic`; ``silence`` what is returned."""
    alarm = Ringing()
    alarm.begin(at, None, time.monotonic, None)
    alarm.armed = alarm.rung = False
    alarm.arm()
    return alarm
