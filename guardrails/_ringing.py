"""A scope whose asyncio task is cancelled at its deadline. Knows tasks and loops, no guard."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from guardrails._alarm import Alarm, Alarms, alarms_of
from guardrails._deadline import Scope

__all__ = ["Ringing", "cancel_at"]

_current_task, _monotonic = asyncio.current_task, time.monotonic


class Ringing(Scope, Alarm):
    """A scope and its alarm in one.

    Attributes:
        armed: Whether the alarm was set. It fills in what only an asyncio call has.
        rung: Whether time was up before the work was over.
        alarms: Where it was set.
        given: Seconds there were when it was armed, where the deadline is an enclosing scope's.
    """

    __slots__ = ("_cancelled_before", "_task", "alarms", "armed", "due", "given", "rung")

    armed: bool
    rung: bool
    given: float
    alarms: Alarms
    _cancelled_before: int
    _task: asyncio.Task[Any]

    def arm(self) -> None:
        """Has the running task cancelled at the deadline, which there must be.

        Raises:
            RuntimeError: No task is running.
        """
        try:
            task = _current_task()
            if task is None:
                raise RuntimeError("a guarded call must run inside an asyncio task")  # noqa: TRY301
            if self.alarmed and self.alarmed == id(task):
                return  # an enclosing call's own alarm rings in this task at that moment
            at = self.at or 0.0
            if self.owner is not self.guard:
                self.given = max(0.0, at - self.clock())
            loop = task.get_loop()
            latest, alarms = Alarms.latest
            if alarms is None or latest is not loop:
                alarms = alarms_of(loop)
            if not alarms.monotonic or self.clock is not _monotonic:
                at = loop.time() + max(0.0, at - self.clock())
            self.alarms = alarms
            self._task = task
            self._cancelled_before = task.cancelling()
            self.due = at
            self.rung = False
            alarms.armed[self] = None
            self.armed = True
            self.alarmed = id(task)
            if at < alarms.planned:
                alarms.plan(loop, at)
        except BaseException:
            self.unarmed()
            raise

    def unarmed(self) -> None:
        """Told when the alarm could not be set."""

    def ring(self) -> None:
        """See Alarm."""
        self.rung = True
        self._task.cancel()

    def silence(self, error: BaseException | None) -> bool:
        """Disarms, and says whether ``error`` is this alarm's own cancellation, which it then takes back.

        A cancellation from outside in the same tick wins. A body that swallowed ours is still late.
        """
        if not self.rung:
            self.alarms.armed.pop(self, None)
            return False
        ours = self._task.uncancel() <= self._cancelled_before
        return ours and (error is None or isinstance(error, asyncio.CancelledError))


def cancel_at(at: float) -> Ringing:
    """Has the running task cancelled at a moment of `time.monotonic`; ``silence`` what is returned."""
    alarm = Ringing()
    alarm.begin(at, None, time.monotonic, None)
    alarm.arm()
    return alarm
