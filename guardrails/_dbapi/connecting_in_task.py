"""Opens connections in asyncio tasks, from inside SQLAlchemy's greenlet.

Depends on asyncio and SQLAlchemy's greenlet functions; must not import a driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from guardrails._dbapi.connecting import Opening, StoppedError, lasting
from guardrails._dbapi.drivers.background import Background
from guardrails._dbapi.watchdog import GRACE
from guardrails._runtime.loop_timers import Timer, timers_of

__all__ = ["InTask", "in_greenlet", "within_task"]

_CLOSING = 1.0
"""Seconds allowed to close a connection that was opened too late."""


class InTask(Opening):
    """Opens a connection in a task of its own; see `Opening` for the arguments.

    If its caller is cancelled or late, the task runs on for the next caller.
    """

    _closing = Background(lambda _: None)

    def __init__(self, call: Callable[[], Any], key: object, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(call, (self._loop, key), seconds)

    def now(self) -> float:
        """See Opening."""
        return self._loop.time()

    def start(self, ended: Callable[[Self], None]) -> None:
        """See Opening."""
        self._task = self._loop.create_task(self._run(), name="guardrails-connect")
        self._task.add_done_callback(lambda task: self._end(task, ended))

    async def _run(self) -> Any:
        async with asyncio.timeout(lasting(self.seconds)):
            return await greenlet_spawn(self.call)

    def _end(self, task: asyncio.Task[Any], ended: Callable[[Self], None]) -> None:
        if task.cancelled():
            self.error = asyncio.CancelledError()  # the loop ends
        elif (error := task.exception()) is not None:
            self.error = error
        else:
            self.connection = task.result()
        ended(self)

    def wait(self, seconds: float) -> None:
        """See Opening."""
        await_only(asyncio.wait({self._task}, timeout=max(0.0, seconds)))

    def rest(self, seconds: float) -> None:
        """See Opening."""
        await_only(asyncio.sleep(seconds))

    def discard(self) -> None:
        """See Opening."""
        self._closing.run(greenlet_spawn(self.connection.close), _CLOSING)


class _Cancelling(Timer):
    """Cancels a task at its deadline, and again after each grace period until the work is over.

    A cancellation can be lost: ``asyncio.wait_for`` of Python 3.11 drops one that arrives as its work ends,
    and a driver may handle one and go on. There is no connection yet whose socket could be shut.
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
