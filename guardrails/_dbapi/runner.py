"""Runs driver work as evidence for the guard, bounded by a deadline.

Depends on the guard, limits and drivers; must not import SQLAlchemy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from guardrails._core.gate import OPENING
from guardrails._core.outcome import Outcome
from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.error_classifier import ErrorClassifier
from guardrails._dbapi.stopping import StoppedError, TimeLimiter
from guardrails._dbapi.unenforced import UnenforcedWork, end_observed
from guardrails._dbapi.unhooked import too_late
from guardrails._dbapi.watchdog import GRACE
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.idle_hold import PutBack
from guardrails._pool.limits import innermost, time_allowed
from guardrails._runtime.scope import Client, ambient, waiting_client

__all__ = ["StatementRunner", "as_it_is"]

# Looked up once, because each statement reads them: enum members are slow to reach in Python 3.11.
_SUCCESS, _ABANDONED, _NEUTRAL = Outcome.SUCCESS, Outcome.ABANDONED, Outcome.NEUTRAL

_BACKSTOP = 4
"""The default backstop, in timeouts of the guard; it ends statements whose cancel request is lost."""


class StatementRunner(UnenforcedWork):
    """Runs pieces of driver work for one engine.

    Args:
        guard: The engine's guard.
        driver: Stops the calls; None where deadlines are off.
        own: Returns the driver's own connection for SQLAlchemy's.
        is_async: True if the work runs on an event loop.
        errors: The DBAPI's error classes for a wrong statement; see `ErrorClassifier`.
        backstop: Seconds after which the server should end a statement on its own; None is the default of
            the driver.

    Attributes:
        classifier: Classifies the errors of the work.
        questioned: New connections that the dialect is initializing, whose statements are no evidence.
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
        limiter = TimeLimiter(driver, own, is_async=is_async, slots=lambda: gate.core.bulkhead.limit)
        super().__init__(guard, limiter, is_async=is_async)
        self._timeout = guard.timeout
        self._driver = driver
        self.questioned: list[Any] = []
        self.classifier = ErrorClassifier(guard, driver, errors)
        self._backstop = backstop
        if (
            backstop is None
            and guard.timeout is not None
            and not getattr(driver, "backstop_on_request", False)
        ):
            self._backstop = guard.timeout * _BACKSTOP
        self._no_checkout = [(self._gate, 0)]
        self._core = self._gate.core

    def failed_cancels(self) -> int:
        """Number of cancel requests that did not reach the server."""
        return getattr(self._driver, "failed_cancels", 0)

    @property
    def fetches(self) -> bool:
        """True if fetching rows from an ordinary cursor makes the database work."""
        return getattr(self._driver, "works_in_fetch", False)

    @property
    def reads_when_dropped(self) -> bool:
        """True if dropping a half-read cursor makes the database work."""
        return getattr(self._driver, "reads_when_dropped", False)

    @property
    def sends_access_mode(self) -> bool:
        """True if making a connection read-only, or asking whether it is, makes the database work."""
        return getattr(self._driver, "sends_access_mode", False)

    def note_access_mode(self, connection: Any, *, read_only: bool) -> None:
        """Notes that the user has made a connection read-only or writable."""
        driver: Any = self._driver
        driver.note_access_mode(connection, read_only=read_only)

    def out_of_step(self, error: BaseException, checkout: DBAPICheckout | None) -> bool:
        """True if a connection must not be used after an error that is no disconnect to SQLAlchemy.

        Without a checkout (of a connect, a ping, a connection older than the guard) the error alone decides.
        A checkout also meets refusals and errors of its caller's code, for which the driver sent nothing.
        """
        lost = self.classifier.out_of_step(error) if checkout is None else checkout.out_of_step
        return lost and self._gate.core.enforces

    @property
    def lifts_backstop(self) -> bool:
        """True if a statement that may take longer than the backstop has to be reworded."""
        on_request = getattr(self._driver, "backstop_on_request", False)
        return self._driver is not None and self._backstop is not None and not on_request

    def time_in_scope(self, checkout: DBAPICheckout | None) -> float | None:
        """Seconds for a statement without a timeout of its own; None is the guard's timeout, inf no limit."""
        guard = self._guard if checkout is None else checkout.guard
        if ambient.get() is None and guard is self._guard:
            return None
        seconds, _ = time_allowed(guard)
        return math.inf if seconds is None else seconds

    def allow(self, statement: str, timeout: float | None, *, streams: bool = False) -> str:
        """Rewords the statement so that the backstop does not end it before ``timeout`` seconds.

        In a stream each fetch has that time, so the backstop must not cover the stream as a whole.
        """
        if self._driver is None or self._backstop is None or not self._gate.core.enforces:
            return statement
        if streams and self._driver.backstop_spans_streams:
            return self._driver.allow(statement, None)
        if timeout is None or timeout <= self._backstop:
            return statement
        return self._driver.allow(statement, None if timeout == math.inf else timeout)

    def run(  # noqa: C901, PLR0912, PLR0915 - hot: every statement runs it
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
            args: Its arguments.
            connection: SQLAlchemy's DBAPI connection.
            checkout: The connection's checkout; None if it was checked out before the guard was attached.
            timeout: The statement's own timeout in seconds.
            ending: True if it ends a transaction, a savepoint or a checkout. It then gets `GRACE` seconds
                after the deadline too, because an unfinished end costs the connection.
            commit: True for a COMMIT, whose timeout leaves the outcome unknown.
            proves: True if its success is evidence. The success of a ping or of a transaction's end is none,
                because those succeed while every statement fails.

        Raises:
            DeadlineSpentError: No time was left, or the client of the request had gone; the work did not
                start.
            CallTimeoutError: It was stopped, at its deadline or because the client has gone.
            ConnectionRevokedError: The connection was taken back; the work did not start.
        """
        proves = proves and not (ending or commit)
        if not self._gate.core.enforces:
            how = {"ending": ending, "proves": proves}
            return self.run_unenforced(call, args, connection, checkout, timeout, **how)
        times = checkout.times if proves and checkout is not None else None
        guard = self._guard if checkout is None else checkout.guard
        client: Client | None = None
        if ambient.get() is None and guard is self._guard:
            seconds, own = self._timeout if timeout is None else timeout, True
        else:
            seconds, own = time_allowed(guard, timeout)
            if not (ending or commit):  # the end of a transaction continues without the client
                client = waiting_client(ambient.get(), guard.name)
        if seconds is not None and seconds <= 0:
            seconds = self._spent(ending=ending)
        tickets: list[tuple[LockedGate, int, int]] = []
        slots, hold = self._no_checkout, None
        if checkout is not None:
            slots, checkout.under_way, hold = checkout.slots, tickets, checkout.hold
        token: PutBack | None = None
        if hold is not None:
            idle = token = hold.idle
            try:
                idle.pop()  # see IdleHold
            except IndexError:
                token = hold.begin()
        outcome, started = _ABANDONED, None
        try:
            for gate, slot in slots:
                tickets.append((gate, gate.begin(slot), slot))
            if times is not None:
                started = times.clock()
            result = self._limiter.run(call, args, connection, seconds, client)
            outcome = _SUCCESS if proves else _NEUTRAL
        except StoppedError as stopped:
            if stopped.client_gone:
                raise self.abandoned(guard, seconds, checkout) from stopped.__cause__
            outcome = too_late(seconds, own=own)
            self.classifier.suspect()
            raise self.timed_out(guard, seconds, checkout, commit=commit) from stopped.__cause__
        except BaseException as error:
            outcome = self.classifier.outcome(error, connection, checkout, ending=ending, proves=proves)
            raise
        finally:
            while tickets:
                gate, ticket, slot = tickets.pop()
                gate.end(ticket, outcome, 0, slot)
            if token is not None:
                token.append(self._core.last)
            if times is not None and started is not None:
                times.used(started)
        return result

    def connect(self, connect: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Opens a connection as evidence, within the time that is left.

        Args:
            connect: Opens a connection, given keyword arguments.
            arguments: The engine's arguments.

        Raises:
            CallTimeoutError: Time is up. The next caller may get the connection.
        """
        seconds, own = time_allowed(self._guard)
        if seconds is not None and seconds <= 0:
            self._gate.refuse("deadline_spent")
        # A new connection is opened for a checkout under way, so its evidence counts for that one's gates.
        tickets: list[tuple[LockedGate, int, int]] = []
        outcome, observation = Outcome.ABANDONED, None
        try:
            for gate in innermost(self._guard).call_settings.gates:
                tickets.append((gate, gate.begin(OPENING), OPENING))  # noqa: PERF401 - known at once, if the next raises
            if self._gate.core.enforces:
                connection = self._limiter.connect(connect, arguments, seconds, self._backstop)
            else:
                observation = self.observe(None, tickets, seconds, own=own)
                connection = connect(**arguments)
            self._limiter.note(connection)
            outcome = _NEUTRAL
        except StoppedError as stopped:
            outcome = too_late(seconds, own=own)
            raise self.timed_out(self._guard, seconds) from stopped.__cause__
        except BaseException as error:
            outcome = self.classifier.outcome_of_connect(error)
            raise
        finally:
            end_observed(tickets, outcome, observation)
        return connection

    def note_set_up(self, connection: Any) -> None:
        """See OutsideWork."""
        if self._driver is not None and connection is not None:
            with suppress(Exception):  # closed meanwhile
                self._driver.set_up(connection)

    def endpoint(self, connection: Any) -> tuple[str | None, str | None]:
        """The host that a connection was opened to and its address, each None if unknown."""
        return (None, None) if self._driver is None else self._driver.endpoint(connection)

    def check_time_left(self) -> None:
        """Checks that time is left for work that must not stop in the middle.

        Raises:
            DeadlineSpentError: No time is left.
        """
        seconds, _ = time_allowed(self._guard)
        if seconds is not None and seconds <= 0:
            self._gate.refuse("deadline_spent")

    def _spent(self, *, ending: bool) -> float:
        """Seconds for work after the deadline: `GRACE` for an end; other work is refused."""
        if not ending:
            raise self._gate.count_refusal("deadline_spent")
        return GRACE


def as_it_is(connection: Any) -> Any:
    """Returns the driver's own connection: there is no other."""
    return connection
