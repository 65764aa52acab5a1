"""What an engine asks of its driver, made evidence and bounded by a deadline. Knows no pools, no dialects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from guardrails._core.gate import OPENING
from guardrails._core.outcome import Outcome
from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.stopping import Bounds, StoppedError
from guardrails._dbapi.unhooked import OutsideWork, too_late
from guardrails._dbapi.watchdog import GRACE
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.limits import innermost, time_allowed
from guardrails._runtime.classify import classify
from guardrails._runtime.scope import ambient

__all__ = ["StatementRunner"]

# Looked up once: every statement comes by. (An enum's members are slow to reach in Python 3.11.)
_SUCCESS, _ABANDONED, _NEUTRAL = Outcome.SUCCESS, Outcome.ABANDONED, Outcome.NEUTRAL

_RAISED_BEFORE = (ArithmeticError, TypeError, ValueError)
"""The errors of Python where a parameter cannot be sent: a number too large, a lone surrogate, a NUL. A lost
connection may raise RuntimeError and AttributeError, so they are not among these."""

_BACKSTOP = 4
"""How many timeouts of the guard the server gives a statement when nobody can tell it to stop."""


class StatementRunner(OutsideWork):
    """Runs pieces of driver work for one engine.

    Args:
        guard: The engine's guard.
        driver: How its calls are stopped; None where deadlines are off.
        own: Gives the driver's own connection for SQLAlchemy's.
        is_async: Whether the work runs on an event loop.
        errors: The error classes of the DBAPI that are answers about the statement, or, without a code of
            the server's, the driver's own refusal to send it.
        backstop: Seconds after which the server should end a statement by itself; None leaves it to the
            driver whether there is such a limit.

    Attributes:
        questioned: New connections that the dialect is asking about the server, which proves nothing.
    """

    def __init__(
        self,
        guard: Guard,
        driver: Driver | None,
        own: Callable[[Any], Any],
        *,
        is_async: bool,
        errors: tuple[type[Exception], ...],
        backstop: float | None = None,
    ) -> None:
        gate = guard.call_settings.gates[0]
        bounds = Bounds(driver, own, is_async=is_async, slots=lambda: gate.core.bulkhead.limit)
        super().__init__(guard, bounds, is_async=is_async)
        self._timeout = guard.timeout
        self._driver = driver
        self.questioned: list[Any] = []
        self._unsent = (*errors, *_RAISED_BEFORE)
        self._refused: Callable[[BaseException], bool] = getattr(driver, "unsent", lambda _: False)
        self._backstop = backstop
        if (
            backstop is None
            and guard.timeout is not None
            and not getattr(driver, "backstop_on_request", False)
        ):
            self._backstop = guard.timeout * _BACKSTOP
        self._no_checkout = [(self._gate, 0)]

    def failed_cancels(self) -> int:
        """Number of orders to stop that did not reach the server."""
        return getattr(self._driver, "failed_cancels", 0)

    @property
    def fetches(self) -> bool:
        """Whether fetching rows from an ordinary cursor makes the database work."""
        return getattr(self._driver, "works_in_fetch", False)

    @property
    def reads_when_dropped(self) -> bool:
        """Whether a cursor that is dropped half-read makes the database work."""
        return getattr(self._driver, "reads_when_dropped", False)

    @property
    def lifts_backstop(self) -> bool:
        """True if a statement has to be worded for a time above the backstop that its scope gives it."""
        on_request = getattr(self._driver, "backstop_on_request", False)
        return self._driver is not None and self._backstop is not None and not on_request

    def time_in_scope(self, checkout: DBAPICheckout | None) -> float | None:
        """Seconds of a statement that asks for none, where they may not be the guard's; inf without end."""
        guard = self._guard if checkout is None else checkout.guard
        if ambient.get() is None and guard is self._guard:
            return None
        seconds, _ = time_allowed(guard)
        return math.inf if seconds is None else seconds

    def allow(self, statement: str, timeout: float | None, *, streams: bool = False) -> str:
        """The statement, worded so that the backstop does not end it before ``timeout`` seconds.

        Of a stream each fetch has that time, so the backstop must not count them together.
        """
        if self._driver is None or self._backstop is None:
            return statement
        if streams and self._driver.backstop_spans_streams:
            return self._driver.allow(statement, None)
        if timeout is None or timeout <= self._backstop:
            return statement
        return self._driver.allow(statement, None if timeout == math.inf else timeout)

    def run(
        self,
        call: Callable[..., Any],
        args: Sequence[Any],
        connection: Any,
        checkout: DBAPICheckout | None,
        *,
        timeout: float | None = None,
        ending: bool = False,
        commit: bool = False,
        proves: bool = True,
    ) -> Any:
        """Runs one piece of work on a connection.

        Args:
            call: The driver's work.
            args: What it is called with.
            connection: The connection as SQLAlchemy has it.
            checkout: Whose work it is; None for a connection out since before the guard was there.
            timeout: Seconds asked for by this statement.
            ending: Whether it ends a transaction, a savepoint or a checkout: it then gets a little time of
                its own however late it is, because an unfinished one costs the connection.
            commit: Whether it is a COMMIT, whose timeout leaves the outcome unknown.
            proves: Whether its success is evidence. That of a ping, or of the end of a transaction, is none:
                they work while every statement fails.

        Raises:
            DeadlineSpentError: No time was left and the work did not start.
            CallTimeoutError: It was stopped.
        """
        proves = proves and not (ending or commit)
        guard = self._guard if checkout is None else checkout.guard
        if ambient.get() is None and guard is self._guard:
            seconds, own = self._timeout if timeout is None else timeout, True
        else:
            seconds, own = time_allowed(guard, timeout)
        if seconds is not None and seconds <= 0:
            seconds = self._spent(ending=ending)
        tickets: list[tuple[LockedGate, int]] = []
        slots = self._no_checkout
        if checkout is not None:
            slots, checkout.under_way = checkout.slots, tickets
        outcome = _ABANDONED
        try:
            for gate, slot in slots:
                tickets.append((gate, gate.begin(slot)))
            result = self._bounds.run(call, args, connection, seconds)
            outcome = _SUCCESS if proves else _NEUTRAL
        except StoppedError as stopped:
            outcome = too_late(seconds, own=own)
            raise self.timed_out(guard, seconds, checkout, commit=commit) from stopped.__cause__
        except BaseException as error:
            outcome = self._judge(error, checkout, ending=ending, proves=proves)
            raise
        finally:
            while tickets:
                gate, ticket = tickets.pop()
                gate.end(ticket, outcome)
        return result

    def bounds(
        self, call: Callable[..., Any], args: Sequence[Any], connection: Any, timeout: float | None = None
    ) -> Any:
        """Runs something within the time of a piece of work that is no evidence, or not by itself.

        It gets a little time however late it is.

        Args:
            call: What several pieces of work are made of, or what only tidies up.
            args: What it is called with.
            connection: The connection as SQLAlchemy has it.
            timeout: Seconds asked for.

        Raises:
            CallTimeoutError: It was stopped. The connection must not be used again.
        """
        seconds, _ = time_allowed(self._guard, timeout)
        if seconds is None or self._driver is None:
            return call(*args)
        # A task that both an outer and an inner timer cancel could not tell which of them did it.
        run = self._bounds.around if self._driver.interrupts_task else self._bounds.run
        try:
            return run(call, args, connection, max(seconds, GRACE))
        except StoppedError as stopped:
            raise self.timed_out(self._guard, seconds) from stopped.__cause__

    def connect(self, connect: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Opens a connection as evidence, within the time that is left.

        Args:
            connect: What opens one, given keyword arguments.
            arguments: What the engine gives it.

        Raises:
            CallTimeoutError: There is no connection yet. The next caller may get it.
        """
        seconds, own = time_allowed(self._guard)
        if seconds is not None and seconds <= 0:
            raise self._gate.refuse("deadline_spent")
        # The connection will be somebody's: a new one is opened for a checkout that is under way.
        tickets: list[tuple[LockedGate, int]] = []
        outcome = Outcome.ABANDONED
        try:
            for gate in innermost(self._guard).call_settings.gates:
                tickets.append((gate, gate.begin(OPENING)))  # noqa: PERF401 - known at once, if the next raises
            connection = self._bounds.connect(connect, arguments, seconds, self._backstop)
            outcome = _NEUTRAL
        except StoppedError as stopped:
            outcome = too_late(seconds, own=own)
            raise self.timed_out(self._guard, seconds) from stopped.__cause__
        except BaseException as error:
            outcome = classify(error, None)  # whatever kept us from connecting is the server's fault
            raise
        finally:
            while tickets:
                gate, ticket = tickets.pop()
                gate.end(ticket, outcome)
        return connection

    def check_time_left(self) -> None:
        """Checks that there is time for what must not be given up in the middle.

        Raises:
            DeadlineSpentError: There is none.
        """
        seconds, _ = time_allowed(self._guard)
        if seconds is not None and seconds <= 0:
            raise self._gate.refuse("deadline_spent")

    def _spent(self, *, ending: bool) -> float:
        """The time work gets when there is none: what ends something gets a little, the rest is refused."""
        if not ending:
            raise self._gate.refuse("deadline_spent")
        return GRACE

    def _judge(
        self, error: BaseException, checkout: DBAPICheckout | None, *, ending: bool, proves: bool
    ) -> Outcome:
        if checkout is not None and isinstance(error, AssertionError):
            # The driver has lost track of its connection: psycopg, when an executemany() is cancelled early.
            checkout.must_discard = True
            return _ABANDONED
        if checkout is not None and not isinstance(error, Exception):
            checkout.caller_cancelled = True
        elif checkout is not None and checkout.caller_cancelled and ending:
            return _ABANDONED
        policy = self._guard.call_settings.policy
        outcome = classify(error, None if policy is None else policy.is_failure)
        answered = _SUCCESS if proves else _NEUTRAL
        if outcome is not Outcome.FAILURE or (policy is not None and policy.is_failure is not None):
            return answered if outcome is _SUCCESS else outcome
        failed = None if self._driver is None else self._driver.failed(error)
        if failed is None and (isinstance(error, self._unsent) or self._refused(error)):
            return _ABANDONED  # without a word of the server's it is the driver's own: nothing was sent
        return answered if failed is False else Outcome.FAILURE
