"""Deadlines for driver work on an event loop: the steps of the watchdog, taken by the loop's timers.

Depends on timers and the watchdog; must not import a driver.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, Protocol

from guardrails._dbapi.watchdog import AGAIN, GRACE, Canceller
from guardrails._runtime.loop_timers import LoopTimers, Timer, timers_of
from guardrails._runtime.scope import GONE, Client

__all__ = ["Operations", "limit_on_loop"]

_get_running_loop, _current_task, _monotonic = asyncio.get_running_loop, asyncio.current_task, time.monotonic


class Operations(Canceller, Protocol):
    """The operations on a connection that a limit on an event loop needs; see Driver."""

    interrupts_task: bool

    def abandon(self, connection: Any) -> None:
        """See Driver."""


class _OnLoop(Timer):
    """Stops driver work on an event loop, in the steps of the watchdog. Made by `limit_on_loop`.

    The work runs inside SQLAlchemy's greenlet, where a cancellation of the task is raised like any error.
    """

    __slots__ = ("before", "client", "connection", "due", "fired", "operations", "task", "timers")

    timers: LoopTimers
    before: int
    client: Client | None  # of the request that the work ends with
    connection: Any
    fired: int
    task: asyncio.Task[Any] | None  # the one to cancel, where that is how the work is stopped
    operations: Operations

    @property
    def late(self) -> bool:
        """See Limit."""
        return _get_running_loop().time() >= self.due

    def is_for(self, clients: AbstractSet[Client]) -> bool:
        """See Timer."""
        return self.client in clients

    def note_client_left(self) -> None:
        """See Timer."""
        self.client = GONE

    def end_with(self, client: Client) -> None:
        """See Limit. The client leaves in the loop's own thread, so it finds the work."""
        self.client = client

    def fire(self) -> float | None:
        """See Timer."""
        self.fired += 1
        if self.client is not GONE:
            self.client = None  # the steps after this one keep their times
        with suppress(Exception):  # it may have been closed meanwhile
            if self.fired == 1:
                self.operations.cancel(self.operations.cancel_target(self.connection), GRACE)
            elif self.fired == 2:  # noqa: PLR2004 - see AGAIN
                self.operations.cancel_again(self.operations.cancel_target(self.connection), GRACE)
            else:
                self.operations.kill(self.connection)
        if self.fired == 1 and self.task is not None:
            self.task.cancel()
        return {1: self.due + AGAIN, 2: self.due - AGAIN + GRACE}.get(self.fired)

    def end(self) -> bool:
        """See Limit. Also False if another party has cancelled the task.

        After the first cancel request the timer stays armed: it limits the closing of a connection whose
        server does not answer. That connection is never used again.
        """
        if not self.fired:
            self.timers.armed.pop(self, None)
            return False
        with suppress(Exception):  # it may have been closed meanwhile
            self.operations.retire(self.connection)
        return self.task is None or self.task.uncancel() <= self.before

    def failed(self, error: BaseException) -> bool:
        """See Limit."""
        if self.end() and isinstance(error, Exception | asyncio.CancelledError):
            return True
        if isinstance(error, asyncio.CancelledError) and not self.fired:
            # Cancelled by another party; the server may need a cancel request.
            self.operations.abandon(self.connection)
        return False


def limit_on_loop(operations: Operations, connection: Any, seconds: float) -> _OnLoop:
    """Starts a limit of ``seconds`` for work on a connection."""
    loop = _get_running_loop()
    limit = _OnLoop()  # no constructor: one frame less for each statement
    limit.operations = operations
    limit.connection = connection
    limit.fired = 0
    limit.client = None
    limit.task = task = _current_task(loop) if operations.interrupts_task else None
    limit.before = 0 if task is None else task.cancelling()
    limit.timers = timers = timers_of(loop)
    limit.due = due = (_monotonic() if timers.monotonic else loop.time()) + seconds
    timers.armed[limit] = None
    if due < timers.planned:
        timers.plan(loop, due)
    return limit
