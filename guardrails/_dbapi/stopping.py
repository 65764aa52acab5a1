"""Stops driver work at its deadline: one cancel request, a second, then the socket is shut.

Depends on drivers, timers and the watchdog; must not import a guard or SQLAlchemy.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from guardrails._dbapi.connecting import InThread, Openings, StoppedError, driver_time_limit
from guardrails._dbapi.connecting_on_loop import OnLoop
from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.limit import ClientLimit, Limit
from guardrails._dbapi.loop_watch import Operations, limit_on_loop
from guardrails._dbapi.watchdog import watch
from guardrails._runtime.scope import GONE, Client
from guardrails._runtime.waiters import on_event_loop

__all__ = ["StoppedError", "TimeLimiter"]


_StartLimit = Callable[[Operations, Any, float], ClientLimit]


class _DriverOperations:
    """A driver's operations for SQLAlchemy's connections; the driver's own is looked up when needed.

    Args:
        driver: Stops the calls; None where deadlines are off.
        own: Returns the driver's own connection.
        interrupts_task: True to cancel the task, too; see Driver.
    """

    def __init__(self, driver: Driver | None, own: Callable[[Any], Any], *, interrupts_task: bool) -> None:
        self._driver = driver
        self._own = own
        self.interrupts_task = interrupts_task

    def cancel_target(self, connection: Any) -> Any:
        """See Driver."""
        return None if self._driver is None else self._driver.cancel_target(self._own(connection))

    def cancel(self, target: Any, within: float) -> None:
        """See Driver."""
        if self._driver is not None:
            self._driver.cancel(target, within)

    def cancel_again(self, target: Any, within: float) -> None:
        """See Driver."""
        if self._driver is not None:
            self._driver.cancel_again(target, within)

    def kill(self, connection: Any) -> None:
        """See Driver."""
        if self._driver is not None:
            self._driver.kill(self._own(connection))

    def retire(self, connection: Any) -> None:
        """See Driver."""
        if self._driver is not None:
            self._driver.retire(self._own(connection))

    def abandon(self, connection: Any) -> None:
        """See Driver."""
        if self._driver is not None:
            self._driver.abandon(self._own(connection))


class TimeLimiter:
    """Runs driver work within a time limit, and stops it at the limit.

    Args:
        driver: Stops the calls; None leaves them unbounded.
        own: Returns the driver's own connection for SQLAlchemy's.
        is_async: True if the work runs on an event loop, inside SQLAlchemy's greenlet.
        slots: Returns the guard's number of slots, which limits how many connections open at once.
    """

    def __init__(
        self, driver: Driver | None, own: Callable[[Any], Any], *, is_async: bool, slots: Callable[[], int]
    ) -> None:
        self._openings = Openings(slots)
        self._driver = driver
        self._own = own
        self._is_async = is_async
        interrupts_task = driver is not None and driver.interrupts_task
        self._operations = _DriverOperations(driver, own, interrupts_task=interrupts_task)
        # Several tasks may use a lent connection, so there is no one task to cancel.
        self._shared_operations = _DriverOperations(driver, own, interrupts_task=False)
        self._limit: _StartLimit = limit_on_loop if is_async else watch
        self._note: Callable[[Any], None] | None = getattr(driver, "note", None)
        if self._note is not None:
            self._limit = partial(self._note_and_limit, self._limit)
        self._prepare: Callable[[Any, float], None] | None = getattr(driver, "prepare", None)

    def run(
        self,
        call: Callable[..., Any],
        args: Sequence[Any],
        connection: Any,
        seconds: float | None,
        client: Client | None = None,
    ) -> Any:
        """Runs work on a connection.

        Args:
            call: The work.
            args: Its arguments.
            connection: The connection.
            seconds: Its limit; None is unlimited.
            client: The client of the request that the work ends with, if any.

        Raises:
            StoppedError: It was cancelled. The connection must not be used again.
        """
        if self._driver is None or (seconds is None and client is None):
            return call(*args)
        limit = self._limit(self._operations, connection, math.inf if seconds is None else seconds)
        try:
            if client is not None:
                limit.end_with(client)
            if self._prepare is not None and seconds is not None:
                self._prepare(self._own(connection), seconds)
            result = call(*args)
        except BaseException as error:
            if limit.failed(error) or self._gave_up(error, limit):
                raise _stopped(limit) from error
            raise
        if limit.end():
            # It finished, but the cancel request may still reach the server and hit the next statement.
            raise _stopped(limit)
        return result

    async def run_async(
        self,
        call: Callable[..., Awaitable[Any]],
        args: Sequence[Any],
        connection: Any,
        seconds: float | None,
        client: Client | None = None,
    ) -> Any:
        """Runs work that is a coroutine; see `run`."""
        if self._driver is None or (seconds is None and client is None):
            return await call(*args)
        limit = self._limit(self._operations, connection, math.inf if seconds is None else seconds)
        try:
            if client is not None:
                limit.end_with(client)
            result = await call(*args)
        except BaseException as error:
            if limit.failed(error):
                raise _stopped(limit) from error
            raise
        if limit.end():
            raise _stopped(limit)
        return result

    def around(self, call: Callable[..., Any], args: Sequence[Any], connection: Any, seconds: float) -> Any:
        """Runs several pieces of work under one limit; each may have a limit of its own.

        Raises:
            StoppedError: It was cancelled. The connection must not be used again.
        """
        limit = self.start_limit(connection, seconds)
        if limit is None:
            return call(*args)
        try:
            result = call(*args)
        except BaseException as error:
            if limit.failed(error):
                raise StoppedError from error
            raise
        if limit.end():
            raise StoppedError
        return result

    def run_several(
        self, call: Callable[..., Any], args: Sequence[Any], connection: Any, seconds: float | None
    ) -> Any:
        """Runs several pieces of work under one limit, as `run`."""
        if seconds is None or self._driver is None:
            return call(*args)
        run = self.around if self._driver.interrupts_task else self.run  # one timer must cancel one task
        return run(call, args, connection, seconds)

    def start_limit(self, connection: Any, seconds: float) -> Limit | None:
        """Starts a limit that stops any work on a connection after ``seconds``.

        Returns:
            The limit; None where nothing can be stopped, as for an asynchronous driver off its loop.
        """
        if self._driver is None or (self._is_async and not on_event_loop()):
            return None
        return self._limit(self._shared_operations, connection, seconds)

    def note(self, connection: Any) -> None:
        """Lets the driver read what it must know of a connection; only for the thread that uses it."""
        if self._note is not None:
            self._note(self._own(connection))

    def _note_and_limit(
        self, limit: _StartLimit, operations: Operations, connection: Any, seconds: float
    ) -> ClientLimit:
        self.note(connection)
        return limit(operations, connection, seconds)

    def retire(self, connection: Any) -> None:
        """Closes a connection for good, also one that a pool owns."""
        with suppress(Exception):  # it may be closed already, or its loop
            self._operations.retire(connection)

    def kill(self, connection: Any) -> None:
        """Shuts a connection below its driver."""
        with suppress(Exception):  # likewise
            self._operations.kill(connection)

    def connect(
        self,
        connect: Callable[..., Any],
        arguments: dict[str, Any],
        seconds: float | None,
        backstop: float | None,
    ) -> Any:
        """Opens a connection; see Driver.open for the arguments.

        Raises:
            StoppedError: Time is up. The next caller may get the connection.
        """
        driver = self._driver
        if seconds is None or driver is None:
            return connect(**arguments)
        if not driver.connects_anywhere:
            # A file, or a pool with a time limit of its own: an abandoned opening leaves nothing on a server.
            call = partial(driver.open, connect, arguments, seconds, backstop)
            return self._in_task().within_task(call, seconds) if self._is_async else call()
        # With several hosts the driver must leave a silent one early enough to try the next.
        driver_limit = seconds if _has_several_hosts(arguments.get("host")) else driver_time_limit(seconds)
        call = partial(driver.open, connect, arguments, driver_limit, backstop)
        called = (connect.func, connect.args) if isinstance(connect, partial) else connect
        if not self._is_async:
            return self._openings.open(InThread(call, (called, arguments), seconds))
        if not self._in_task().in_greenlet():
            return call()
        return self._openings.open(self._in_task().InTask(call, (called, arguments), seconds))

    def drop_openings(self) -> None:
        """Ends the openings that their callers have abandoned."""
        self._openings.drop()

    async def connect_async(
        self,
        connect: Callable[..., Awaitable[Any]],
        arguments: dict[str, Any],
        seconds: float | None,
        backstop: float | None,
    ) -> Any:
        """Opens a connection with a coroutine; see `connect`. The driver must have ``open_async``."""
        driver: Any = self._driver
        if seconds is None or driver is None:
            return await connect(**arguments)
        if not driver.connects_anywhere:
            return await driver.open(connect, arguments, seconds, backstop)
        driver_limit = seconds if _has_several_hosts(arguments.get("host")) else driver_time_limit(seconds)
        call = partial(driver.open_async, connect, arguments, driver_limit, backstop)
        called = (connect.func, connect.args) if isinstance(connect, partial) else connect
        return await self._openings.open_async(OnLoop(call, (called, arguments), seconds))

    @staticmethod
    def _in_task() -> Any:
        # Imported when needed, because Django's users need not have SQLAlchemy.
        from guardrails._dbapi import connecting_in_task  # noqa: PLC0415

        return connecting_in_task

    def _gave_up(self, error: BaseException, limit: Limit) -> bool:
        """True if the driver ended its work on its own, as `prepare` had set it up."""
        return self._prepare is not None and isinstance(error, Exception) and limit.late


def _stopped(limit: ClientLimit) -> StoppedError:
    return StoppedError(client_gone=limit.client is GONE)


def _has_several_hosts(host: object) -> bool:
    """True if a driver is given more than one host."""
    return (isinstance(host, str) and "," in host) or (isinstance(host, list | tuple) and len(host) > 1)
