"""Stopping driver work at its deadline: asked first, cut a grace later. Knows no guards and no evidence."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from guardrails._alarm import Alarm, alarms
from guardrails.integrations.sqlalchemy._drivers import Driver
from guardrails.integrations.sqlalchemy._watchdog import GRACE, Watched, arm, disarm

__all__ = ["Bounds", "StoppedError"]

_Call = Callable[[], Any]


class StoppedError(Exception):
    """Work was stopped at its deadline; the cause is what the driver said to it."""


class Bounds:
    """Runs driver work for at most some seconds.

    Args:
        driver: How its calls are stopped; None leaves them unbounded.
        is_async: Whether the work runs on an event loop, inside SQLAlchemy's greenlet.
    """

    def __init__(self, driver: Driver | None, *, is_async: bool) -> None:
        self._driver = driver
        self._is_async = is_async
        self._work = _on_loop if is_async else _in_thread
        self._prepare: Callable[[Any, float], None] | None = getattr(driver, "prepare", None)

    def run(
        self,
        call: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        connection: Any,
        seconds: float | None,
    ) -> Any:
        """Runs work on a connection.

        Raises:
            StoppedError: It was asked to stop. The connection must not be used again.
        """
        driver = self._driver
        if seconds is None or driver is None:
            return call(*args, **kwargs)
        work = self._work
        if self._prepare is None:
            return work(call, args, kwargs, driver, connection, seconds)
        at = time.monotonic() + seconds
        self._prepare(connection, seconds)
        try:
            return work(call, args, kwargs, driver, connection, seconds)
        except StoppedError:
            raise
        except Exception as error:
            if time.monotonic() >= at:
                raise StoppedError from error  # the driver gave up, as it had been prepared to
            raise

    def connect(
        self,
        connect: Callable[..., Any],
        arguments: dict[str, Any],
        seconds: float | None,
        backstop: float | None,
    ) -> Any:
        """Opens a connection; see Driver.open for the arguments.

        Raises:
            StoppedError: There is none yet. One that comes later is closed.
        """
        driver = self._driver
        if seconds is None or driver is None:
            return connect(**arguments)
        call = partial(driver.open, connect, arguments, seconds, backstop)
        if self._is_async:
            return _on_loop(call, (), {}, None, None, seconds)
        return _Connecting(call).within(seconds) if driver.connects_anywhere else call()


def _in_thread(
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    driver: Driver,
    connection: Any,
    seconds: float,
) -> Any:
    watched = arm(Watched(time.monotonic() + seconds, driver, connection))
    try:
        result = call(*args, **kwargs)
    except Exception as error:
        if disarm(watched):
            raise StoppedError from error
        raise
    except BaseException:
        disarm(watched)
        raise
    if disarm(watched):
        # It finished, but the server may still get our cancel request, for whatever runs next.
        raise StoppedError
    return result


def _on_loop(
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    driver: Driver | None,
    connection: Any,
    seconds: float,
) -> Any:
    """Runs work inside SQLAlchemy's greenlet, where a cancellation of the task arrives as any error."""
    alarm = _StopOnLoop(driver, connection, seconds)
    try:
        result = call(*args, **kwargs)
    except BaseException as error:
        if alarm.end() and isinstance(error, Exception | asyncio.CancelledError):
            raise StoppedError from error
        if isinstance(error, asyncio.CancelledError):
            alarm.abandon()
        raise
    if alarm.end():
        raise StoppedError
    return result


class _StopOnLoop(Alarm):
    """Stops driver work on an event loop: asks at the deadline, cuts a grace later.

    Args:
        driver: How to stop it; None cancels the waiting task, which is enough for a connect.
        connection: The driver's connection.
        seconds: The deadline from now.
    """

    __slots__ = ("_before", "_connection", "_driver", "_rung", "_task", "due")

    def __init__(self, driver: Driver | None, connection: Any, seconds: float) -> None:
        super().__init__()
        self._driver = driver
        self._connection = connection
        self._rung = 0
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()
        alarms().arm(self, seconds)

    def ring(self) -> float | None:
        """See Alarm."""
        self._rung += 1
        if self._rung > 1:
            if self._driver is not None:
                self._driver.kill(self._connection)
            return None
        if self._driver is not None:
            self._driver.cancel(self._connection, GRACE)
        if self._task is not None and (self._driver is None or self._driver.interrupts_task):
            self._task.cancel()
        return self.due + GRACE

    def end(self) -> bool:
        """The work is over; True if it was stopped by this alarm rather than from outside.

        Once it was asked to stop the second stage stays armed: it bounds the closing of a connection
        whose server does not answer, and that connection is never used again.
        """
        if not self._rung:
            alarms().disarm(self)
            return False
        if self._task is None or (self._driver is not None and not self._driver.interrupts_task):
            return True
        return self._task.uncancel() <= self._before

    def abandon(self) -> None:
        """The task was cancelled from outside; the server may have to be told, unless it was already."""
        if self._driver is not None and not self._rung:
            self._driver.abandon(self._connection)


class _Connecting:
    """A blocking connect in a thread of its own, because no driver can be told to give up."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._given_up = False
        self._connection: Any = None
        self._error: BaseException | None = None

    def within(self, seconds: float) -> Any:
        threading.Thread(target=self._connect, daemon=True, name="guardrails-connect").start()
        self._done.wait(seconds)
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
            self._done.set()
