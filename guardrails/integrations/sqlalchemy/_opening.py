"""Opening a connection for at most some seconds: there is nothing yet that could be cut. Knows no driver."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from guardrails._alarm import Alarm, alarms_of
from guardrails._fork import survive_fork
from guardrails.integrations.sqlalchemy._watchdog import GRACE

__all__ = ["Connecting", "Openings", "StoppedError", "within_task"]


class StoppedError(Exception):
    """Work was stopped at its deadline; the cause is what the driver said to it."""


class _Cancelling(Alarm):
    """Cancels a task at its deadline, and again each grace after it until the work is over.

    A cancellation can get lost: ``asyncio.wait_for`` of Python 3.11 forgets one that comes at the moment its
    work is done, and a driver may handle one and go on. Here is no connection yet that could be cut instead.
    """

    __slots__ = ("alarms", "before", "due", "rung", "task")

    def __init__(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.task = asyncio.current_task(loop)
        self.before = 0 if self.task is None else self.task.cancelling()
        self.rung = 0
        self.alarms = alarms_of(loop)
        self.alarms.arm(self, seconds)

    def ring(self) -> float | None:
        """See Alarm."""
        self.rung += 1
        if self.task is not None:
            self.task.cancel()
        return self.due + GRACE

    def end(self) -> bool:
        """Disarms, and takes back what it did; True if that is all that was done to the task."""
        self.alarms.disarm(self)
        left = self.before
        for _ in range(self.rung):
            left = 0 if self.task is None else self.task.uncancel()
        return self.rung > 0 and left <= self.before


def within_task(call: Callable[[], Any], seconds: float) -> Any:
    """Runs work of a task that ends well when the task is cancelled.

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
    limit.end()  # it came late, but it came
    return result


class Openings:
    """The places of blocking connects that are under way, given up or not.

    A server that answers nothing keeps each of them, its thread and its socket, until the driver gives up.

    Args:
        limit: How many there may be at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = threading.Semaphore(limit)
        survive_fork(self)

    def pause(self, seconds: float) -> bool:  # noqa: ARG002 - a semaphore is never left half-taken
        """See Survivor."""
        return True

    def unpause(self) -> None:
        """See Survivor."""

    def start_afresh(self) -> None:
        """See Survivor: the parent's threads do not exist here."""
        self._free = threading.Semaphore(self._limit)

    def take(self, seconds: float) -> Callable[[], None]:
        """Takes a place; what is returned gives it back.

        Raises:
            StoppedError: There was none in time.
        """
        free = self._free
        if not free.acquire(timeout=max(seconds, 0.0)):
            raise StoppedError
        return free.release


class Connecting:
    """A blocking connect in a thread of its own, because no driver can be told to give up.

    Args:
        call: Opens the connection.
        openings: The places there are for it.
    """

    def __init__(self, call: Callable[[], Any], openings: Openings) -> None:
        self._call = call
        self._openings = openings
        self._leave: Callable[[], None] = _nothing
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._given_up = False
        self._connection: Any = None
        self._error: BaseException | None = None

    def within(self, seconds: float) -> Any:
        """Waits for the connection.

        Raises:
            StoppedError: There is none yet. One that comes later is closed.
        """
        until = time.monotonic() + seconds
        self._leave = self._openings.take(seconds)
        try:
            threading.Thread(target=self._connect, daemon=True, name="guardrails-connect").start()
        except BaseException:
            self._leave()
            raise
        self._done.wait(max(0.0, until - time.monotonic()))
        with self._lock:
            if not self._done.is_set():
                self._given_up = True
                raise StoppedError
        if self._error is not None:
            raise self._error
        return self._connection

    def _connect(self) -> None:
        try:
            connection = self._call()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error
        else:
            with self._lock:
                self._connection = connection
                late = self._given_up
                self._done.set()
            if late:
                connection.close()
        finally:
            self._leave()
            self._done.set()


def _nothing() -> None:
    """Gives back no place."""
