"""Opens connections from inside SQLAlchemy's greenlet.

Depends on asyncio and SQLAlchemy's greenlet functions; must not import a driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from guardrails._dbapi.connecting import StoppedError
from guardrails._dbapi.connecting_on_loop import OnLoop
from guardrails._dbapi.drivers.background import Background
from guardrails._dbapi.watchdog import GRACE
from guardrails._runtime.loop_timers import Timer, timers_of

__all__ = ["InTask", "in_greenlet", "within_task"]

_CLOSING = 1.0
"""Seconds allowed to close a connection that was opened too late."""


class InTask(OnLoop):
    """Opens a connection from inside SQLAlchemy's greenlet; see `OnLoop`."""

    _closing = Background(lambda _: None)

    async def _open(self) -> Any:
        return await greenlet_spawn(self.call)

    async def wait(self, seconds: float) -> None:
        """See Opening."""
        await_only(super().wait(seconds))

    async def rest(self, seconds: float) -> None:
        """See Opening."""
        await_only(super().rest(seconds))

    def discard(self) -> None:
        """See Opening."""
        self._closing.run(greenlet_spawn(self.connection.close), _CLOSING)


class _Cancelling(Timer):
    """Cancels a task at its deadline, and again after each grace period until the work is over.

    A cancellation can be lost: ``asyncio.wait_for`` of Python 3.11 drops one that arrives as its work ends,
    and a driver may handle one and continue. There is no connection yet whose socket could be shut.
    """

    __slots__ = ("before", "due", "fired", "task", "timers")

    def __init__(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.task = asyncio.current_task(loop)
        self.before = 0 if self.task is None else self.task.cancelling()
        self.fired = 0
        self.timers = timers_of(loop)
        self.timers.arm(self, seconds)

    def fire(self) -> float | None:
        """See Timer."""
        self.fired += 1
        if self.task is not None:
            self.task.cancel()
        return self.due + GRACE

    def end(self) -> bool:
        """Disarms the timer and undoes its cancellations; True if the task has no other cancellation."""
        self.timers.disarm(self)
        left = self.before
        for _ in range(self.fired):
            left = 0 if self.task is None else self.task.uncancel()
        return self.fired > 0 and left <= self.before


def within_task(call: Callable[[], Any], seconds: float) -> Any:
    """Runs work that cleans up after itself when its task is cancelled.

    Raises:
        StoppedError: It was cancelled at its deadline.
    """
    limit = _Cancelling(seconds)
    try:
        result = call()
    except BaseException as error:
        if limit.end() and isinstance(error, Exception | asyncio.CancelledError):
            raise StoppedError from error
        raise
    limit.end()  # a late connection is still used
    return result
