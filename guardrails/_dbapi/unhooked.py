"""Limits work on a connection past the hooks: by listeners, and on the driver's own connection.

Depends on deadlines and the guard; must not import SQLAlchemy.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from guardrails._core.outcome import Outcome
from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._dbapi.limit import NO_LIMIT, Limit
from guardrails._dbapi.stopping import StoppedError, TimeLimiter
from guardrails._dbapi.watchdog import GRACE
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.limits import time_allowed
from guardrails._runtime.pauses import pause_detector
from guardrails._runtime.scope import current, note_guard_error, time_left
from guardrails.errors import (
    CallAbandonedError,
    CallTimeoutError,
    CommitUnknownError,
    ConnectionRevokedError,
    GuardrailsError,
)

__all__ = ["OutsideWork", "too_late"]


class OutsideWork:
    """The limits of work past the hooks.

    Args:
        guard: The engine's guard.
        limiter: Stops work on a connection.
        is_async: True if the work runs on an event loop.

    Attributes:
        setting_up: Limits of new connections that are not handed out yet, by the waiting thread or task.
    """

    def __init__(self, guard: Guard, limiter: TimeLimiter, *, is_async: bool) -> None:
        self._guard = guard
        self._gate: LockedGate = guard.call_settings.gates[0]
        self._limiter = limiter
        self._is_async = is_async
        self.setting_up: dict[int, Limit] = {}

    def observe(
        self,
        checkout: DBAPICheckout | None,
        tickets: Sequence[tuple[LockedGate, int, int]],
        seconds: float | None,
        *,
        own: bool,
    ) -> Limit | None:
        """Observes work that enforcing would stop; see `UnenforcedWork`."""
        raise NotImplementedError

    def limit_until_deadline(self, connection: Any, checkout: DBAPICheckout) -> Limit | None:
        """Starts a limit for work past the hooks, until the ambient deadline.

        Args:
            connection: SQLAlchemy's DBAPI connection.
            checkout: The connection's checkout.

        Returns:
            The limit, to be ended when the connection returns; None without a deadline.
        """
        scope, enforces = current(), self._gate.core.enforces
        left = None if scope is None else time_left(scope) if enforces else scope.remaining()
        if left is None:
            return None
        if not enforces:
            return self.observe(checkout, (), max(left, GRACE), own=False)
        return self._limiter.start_limit(connection, max(left, GRACE))

    def run_limited(
        self, call: Callable[..., Any], args: Sequence[Any], connection: Any, timeout: float | None = None
    ) -> Any:
        """Runs a call within the time of a piece of work, without evidence.

        It gets at least `GRACE` seconds, also after the deadline.

        Args:
            call: Several pieces of work, or a clean-up.
            args: Its arguments.
            connection: SQLAlchemy's DBAPI connection.
            timeout: Its own timeout in seconds.

        Raises:
            CallTimeoutError: It was stopped. The connection must not be used again.
        """
        if not self._gate.core.enforces:
            return call(*args)
        seconds, _ = time_allowed(self._guard, timeout)
        try:
            return self._limiter.run_several(
                call, args, connection, None if seconds is None else max(seconds, GRACE)
            )
        except StoppedError as stopped:
            raise self.timed_out(self._guard, seconds) from stopped.__cause__

    def finish(
        self,
        close: Callable[..., Any],
        args: Sequence[Any],
        connection: Any,
        checkout: DBAPICheckout | None,
        timeout: float | None,
    ) -> Any:
        """Closes a cursor as `run_limited` does. On a connection that was taken back it tells no server."""
        hold = None if checkout is None else checkout.hold
        if hold is None:
            return self.run_limited(close, args, connection, timeout)
        try:
            token = hold.begin()
        except ConnectionRevokedError:
            return self.drop_cursor(close, args)
        try:
            return self.run_limited(close, args, connection, timeout)
        finally:
            token.append(self._gate.clock())

    def drop_cursor(self, close: Callable[..., Any], args: Sequence[Any]) -> None:
        """Closes a cursor whose connection is closed: there is no server to tell."""
        with suppress(Exception):
            close(*args)

    def retire(self, connection: Any) -> None:
        """Closes a connection for good; its own ``close()`` may return it to the pool that owns it."""
        self._limiter.retire(connection)

    def kill(self, connection: Any) -> None:
        """Shuts a connection below its driver, in case its server does not answer."""
        self._limiter.kill(connection)

    def limit_listeners(
        self, connection: Any, checkout: DBAPICheckout | None, timeout: float | None = None
    ) -> Limit | None:
        """Starts a limit for listeners that use a connection, as long as for a piece of work.

        Args:
            connection: SQLAlchemy's DBAPI connection.
            checkout: The connection's checkout; None while it is set up.
            timeout: Their own timeout in seconds.

        Returns:
            The limit, to be ended with `end_limit`; None without a timeout.
        """
        seconds, own = time_allowed(self._guard, timeout)
        if seconds is None:
            return None
        if not self._gate.core.enforces:
            tickets = [(self._gate, 0, 0 if checkout is None else checkout.slot_at(self._gate))]
            return self.observe(checkout, tickets, max(seconds, GRACE), own=own)
        return self._limiter.start_limit(connection, max(seconds, GRACE))

    def end_limit(
        self, limit: Limit, error: BaseException | None = None, checkout: DBAPICheckout | None = None
    ) -> None:
        """Ends a limit of listeners; a stopped listener is evidence.

        Args:
            limit: The result of `limit_listeners`.
            error: The exception that ended their work, if any.
            checkout: The connection's checkout, if any.

        Raises:
            CallTimeoutError: A listener was stopped. The connection must not be used again.
        """
        if not limit.end() or isinstance(error, GuardrailsError):
            return
        if error is None or isinstance(error, Exception):
            seconds, own = time_allowed(self._guard)
            slot = 0 if checkout is None else checkout.slot_at(self._gate)
            self._gate.end(self._gate.begin(slot), too_late(seconds, own=own), 0, slot)
            raise self.timed_out(self._guard, seconds, checkout) from error

    def limit_check_in(self, connection: Any, checkout: DBAPICheckout) -> Limit | None:
        """Limits listeners of a connection's return, until its pool has it."""
        if checkout.raw_limit is not None and checkout.raw_limit.end():
            checkout.must_discard = True
        checkout.checking_in = True
        checkout.raw_limit = self.limit_listeners(connection, checkout)
        return checkout.raw_limit

    def open_bracket(self, connection: Any, checkout: DBAPICheckout, timeout: float | None) -> None:
        """Limits listeners that use a checkout's connection, until its next piece of work starts.

        Args:
            connection: SQLAlchemy's DBAPI connection.
            checkout: The connection's checkout.
            timeout: The timeout of the statement around them, in seconds.

        Raises:
            ConnectionRevokedError: The connection was taken back.
        """
        if checkout.listener_limit is not None:
            self.end_bracket(checkout)
        if checkout.hold is None:
            checkout.listener_limit = self.limit_listeners(connection, checkout, timeout)
            return
        checkout.hold.begin()
        checkout.listener_limit = NO_LIMIT  # also without a timeout: `end_bracket` ends what has begun
        checkout.listener_limit = self.limit_listeners(connection, checkout, timeout) or NO_LIMIT

    def end_bracket(self, checkout: DBAPICheckout, error: BaseException | None = None) -> None:
        """Ends the limit that `open_bracket` started.

        Args:
            checkout: The connection's checkout.
            error: The exception that ended the listeners, if any.

        Raises:
            CallTimeoutError: A listener was stopped.
        """
        limit, checkout.listener_limit = checkout.listener_limit, None
        if limit is not None:
            if checkout.hold is not None:
                checkout.hold.append(self._gate.clock())
            self.end_limit(limit, error, checkout)

    def set_up(self, connection: Any) -> None:
        """Limits the statements that set up a new connection, until `end_set_up`.

        SQLAlchemy, the driver and the user's listeners run them, past the hooks.
        """
        caller = self._caller()
        previous = self.setting_up.pop(caller, None)
        if previous is not None:
            previous.end()  # the limit of a connection that was replaced
        limit = self.limit_listeners(connection, None)
        if limit is not None:
            self.setting_up[caller] = limit

    def end_set_up(self, error: BaseException | None = None, connection: Any = None) -> None:
        """Ends the limit that `set_up` started for this caller.

        Args:
            error: The exception that the caller got instead of a connection, if any.
            connection: The connection that it got.

        Raises:
            CallTimeoutError: The set-up was stopped.
        """
        limit = self.setting_up.pop(self._caller(), None)
        if limit is not None:
            self.end_limit(limit, error)
            self.note_set_up(connection)

    def note_set_up(self, connection: Any) -> None:
        """Notes what the set-up of a new connection has asked for."""

    def timed_out(
        self,
        guard: Guard,
        seconds: float | None,
        checkout: DBAPICheckout | None = None,
        *,
        commit: bool = False,
    ) -> CallTimeoutError:
        """Creates the error of stopped work and notes it in its checkout and its request."""
        if checkout is not None:
            checkout.must_discard = True
        self._gate.report.note_stopped()
        errors = self._gate.errors
        return note_guard_error(
            (errors.commit_unknown if commit else errors.timeout)(guard.name, seconds or 0.0)
        )

    def abandoned(
        self, guard: Guard, seconds: float | None, checkout: DBAPICheckout | None
    ) -> CallAbandonedError:
        """Creates the error of work that was stopped because the client of its request has left."""
        if checkout is not None:
            checkout.must_discard = True
        return note_guard_error(CallAbandonedError(guard.name, seconds or 0.0))

    def unknown(self, error: CallTimeoutError) -> CommitUnknownError:
        """Creates the error of a COMMIT that timed out as a statement."""
        return self._gate.errors.commit_unknown(*error.args)

    def _caller(self) -> int:
        return id(asyncio.current_task()) if self._is_async else threading.get_ident()


def too_late(seconds: float | None, *, own: bool) -> Outcome:
    """The outcome of a passed deadline: ABANDONED if it was the caller's, or if this process was paused."""
    return Outcome.FAILURE if own and not pause_detector.missed(seconds or 0.0) else Outcome.ABANDONED
