"""What an engine asks of its driver, made evidence and bounded by a deadline. Knows no pools.

The hooks replace methods of the dialect *instance*: that costs under a microsecond a statement,
where event listeners cost seven and never see a COMMIT, a reset on return or a connect.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guardrails._alarm import Alarm, alarms
from guardrails._deadline import Scope, current, note_trouble
from guardrails._door import Door
from guardrails._guard import Guard
from guardrails._outcome import Outcome, classify
from guardrails.errors import CallTimeoutError, CommitUnknownError
from guardrails.events import CallFinished
from guardrails.integrations.sqlalchemy._drivers import Driver
from guardrails.integrations.sqlalchemy._watchdog import GRACE, Watched, arm, disarm

if TYPE_CHECKING:
    from guardrails.integrations.sqlalchemy._pool import Checkout

__all__ = ["Worker"]

_Call = Callable[[], Any]


class Worker:
    """Runs pieces of driver work for one engine.

    Args:
        guard: The engine's guard.
        driver: How its calls are stopped; None where deadlines are off.
        is_async: Whether the work runs on an event loop.
        errors: The error classes of the DBAPI that are answers about the statement.
    """

    def __init__(
        self, guard: Guard, driver: Driver | None, *, is_async: bool, errors: tuple[type[Exception], ...]
    ) -> None:
        self._guard = guard
        self._door: Door = guard.passage.doors[0]
        self._driver = driver
        self._is_async = is_async
        self._errors = errors

    def run(
        self,
        call: _Call,
        connection: Any,
        checkout: Checkout | None,
        *,
        timeout: float | None = None,
        ending: bool = False,
        commit: bool = False,
    ) -> Any:
        """Runs one piece of work on a connection.

        Args:
            call: The driver's work.
            connection: The driver's own connection.
            checkout: Whose work it is; None for a connection out since before the guard was there.
            timeout: Seconds asked for by this statement.
            ending: Whether it ends a transaction or a checkout: it then gets a little time of its own
                however late it is, because an unfinished one costs the connection.
            commit: Whether it is a COMMIT, whose timeout leaves the outcome unknown.

        Raises:
            DeadlineSpentError: No time was left and the work did not start.
            CallTimeoutError: It was stopped.
        """
        guard = self._guard if checkout is None else checkout.guard
        seconds, own = self._budget(guard, timeout)
        if seconds is not None and seconds <= 0:
            if not ending:
                raise self._door.refuse("deadline_spent")
            seconds = GRACE
        slots = [(self._door, 0)] if checkout is None else checkout.slots
        tickets = [(door, door.step(door.gate.begin, slot)) for door, slot in slots]
        started = self._door.clock()
        outcome = Outcome.ABANDONED
        try:
            result = self._bounded(call, connection, seconds)
            outcome = Outcome.SUCCESS
        except _StoppedError as stopped:
            outcome = Outcome.FAILURE if own else Outcome.ABANDONED
            error = (CommitUnknownError if commit else CallTimeoutError)(guard.name, seconds or 0.0)
            note_trouble(error)
            raise error from stopped.__cause__
        except BaseException as error:
            outcome = self._judge(error)
            raise
        finally:
            for door, ticket in tickets:
                slow = door.step(door.gate.end, ticket, outcome)
                if door.wanted(CallFinished):
                    door.finished(outcome, started, slow=slow)
        return result

    def connect(self, call: _Call) -> Any:
        """Opens a connection as evidence, within the time that is left.

        Raises:
            CallTimeoutError: There is no connection yet. One that comes later is closed.
        """
        seconds, own = self._budget(self._guard, None)
        if seconds is not None and seconds <= 0:
            raise self._door.refuse("deadline_spent")
        door = self._door
        ticket = door.step(door.gate.begin, 0)
        outcome = Outcome.ABANDONED
        try:
            connection = self._connect_within(call, seconds)
            outcome = Outcome.SUCCESS
        except _StoppedError as stopped:
            outcome = Outcome.FAILURE if own else Outcome.ABANDONED
            error = CallTimeoutError(self._guard.name, seconds or 0.0)
            note_trouble(error)
            raise error from stopped.__cause__
        except BaseException as error:
            outcome = classify(error, None)  # whatever kept us from connecting is the server's fault
            raise
        finally:
            door.step(door.gate.end, ticket, outcome)
        return connection

    def _budget(self, guard: Guard, timeout: float | None) -> tuple[float | None, bool]:
        """Seconds the work may take, and whether it is our own timeout that says so."""
        own = guard.timeout if timeout is None else timeout
        scope: Scope | None = current()
        left = None if scope is None else scope.remaining()
        if scope is None or left is None or (own is not None and own <= left):
            return own, True
        owner = scope.owner
        return left, owner is not None and owner.passage.doors[-1] is self._door

    def _judge(self, error: BaseException) -> Outcome:
        policy = self._guard.passage.policy
        outcome = classify(error, None if policy is None else policy.is_failure)
        if outcome is not Outcome.FAILURE or (policy is not None and policy.is_failure is not None):
            return outcome
        failed = None if self._driver is None else self._driver.failed(error)
        if failed is None:
            failed = not isinstance(error, self._errors)
        return Outcome.FAILURE if failed else Outcome.SUCCESS

    # --- deadlines -----------------------------------------------------------------------------

    def _bounded(self, call: _Call, connection: Any, seconds: float | None) -> Any:
        driver = self._driver
        if seconds is None or driver is None:
            return call()
        if self._is_async:
            return _on_loop(call, _StopOnLoop(driver, connection, seconds))
        watched = arm(
            Watched(
                time.monotonic() + seconds,
                lambda: driver.cancel(connection, GRACE),
                lambda: driver.kill(connection),
            )
        )
        try:
            result = call()
        except Exception as error:
            if disarm(watched):
                raise _StoppedError from error
            raise
        except BaseException:
            disarm(watched)
            raise
        if disarm(watched):
            # It finished, but the server may still get our cancel request, for whatever runs next.
            raise _StoppedError
        return result

    def _connect_within(self, call: _Call, seconds: float | None) -> Any:
        driver = self._driver
        if seconds is None or driver is None:
            return call()
        if self._is_async:
            return _on_loop(call, _StopOnLoop(None, None, seconds))
        return _Connecting(call).within(seconds) if driver.connects_anywhere else call()


class _StoppedError(Exception):
    """Work was stopped at its deadline; the cause is what the driver said to it."""


def _on_loop(call: _Call, alarm: _StopOnLoop) -> Any:
    """Runs work inside SQLAlchemy's greenlet, where a cancellation of the task arrives as any error."""
    try:
        result = call()
    except BaseException as error:
        if alarm.end() and isinstance(error, Exception | asyncio.CancelledError):
            raise _StoppedError from error
        raise
    if alarm.end():
        raise _StoppedError
    return result


class _StopOnLoop(Alarm):
    """Stops driver work on an event loop: asks at the deadline, cuts a grace later.

    Args:
        driver: How to stop it; None cancels the waiting task, which is enough for a connect.
        connection: The driver's connection.
        seconds: The deadline from now.
    """

    __slots__ = ("_before", "_connection", "_driver", "_rung", "_task")

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
        return self.at + GRACE

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
                raise _StoppedError
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
