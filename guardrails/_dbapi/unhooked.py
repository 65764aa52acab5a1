"""Bounds what is done with a connection past all hooks: by listeners, and by users of the driver's own.

Depends on deadlines and the guard; must not import SQLAlchemy.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from guardrails._core.outcome import Outcome
from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._dbapi.stopping import Bounds, Limit
from guardrails._dbapi.watchdog import GRACE
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.limits import time_allowed
from guardrails._runtime.pauses import pause_detector
from guardrails._runtime.scope import current, note_guard_error
from guardrails.errors import CallTimeoutError, CommitUnknownError, GuardrailsError

__all__ = ["OutsideWork", "too_late"]


class OutsideWork:
    """The limits of work that no hook sees.

    Args:
        guard: The engine's guard.
        bounds: Stops work on a connection.
        is_async: Whether the work runs on an event loop.

    Attributes:
        setting_up: What bounds the connections that are not handed out yet, by who waits for one.
    """

    def __init__(self, guard: Guard, bounds: Bounds, *, is_async: bool) -> None:
        self._guard = guard
        self._gate: LockedGate = guard.call_settings.gates[0]
        self._bounds = bounds
        self._is_async = is_async
        self.setting_up: dict[int, Limit] = {}

    def lend(self, connection: Any) -> Limit | None:
        """Stops what is done with a connection past all hooks when the ambient deadline has come.

        Returns:
            What is to be told when the connection comes back; None without a deadline.
        """
        scope = current()
        left = None if scope is None else scope.remaining()
        return None if left is None else self._bounds.lend(connection, max(left, GRACE))

    def retire(self, connection: Any) -> None:
        """Closes a connection for good; its own ``close()`` may return it to the pool that owns it."""
        self._bounds.retire(connection)

    def watch(self, connection: Any, timeout: float | None = None) -> Limit | None:
        """Stops what listeners do with a connection past all hooks when a piece of work would be stopped.

        Args:
            connection: The connection as SQLAlchemy has it.
            timeout: Seconds asked for.

        Returns:
            What is to be told when they are done; None without a limit.
        """
        seconds, _ = time_allowed(self._guard, timeout)
        return None if seconds is None else self._bounds.lend(connection, max(seconds, GRACE))

    def settle(
        self, limit: Limit, error: BaseException | None = None, checkout: DBAPICheckout | None = None
    ) -> None:
        """Ends a limit of what listeners do; that one of them was stopped is evidence.

        Args:
            limit: What `watch` returned.
            error: What came of it.
            checkout: Whose connection it is, if anybody's.

        Raises:
            CallTimeoutError: It was stopped. The connection must not be used again.
        """
        if not limit.end() or isinstance(error, GuardrailsError):
            return
        if error is None or isinstance(error, Exception):
            seconds, own = time_allowed(self._guard)
            self._gate.end(self._gate.begin(0), too_late(seconds, own=own))
            raise self.timed_out(self._guard, seconds, checkout) from error

    def watch_check_in(self, connection: Any, checkout: DBAPICheckout) -> Limit | None:
        """Bounds what listeners do with a connection that comes back, until its pool has it."""
        if checkout.lent is not None and checkout.lent.end():
            checkout.must_discard = True
        checkout.checking_in = True
        checkout.lent = self.watch(connection)
        return checkout.lent

    def open_bracket(self, connection: Any, checkout: DBAPICheckout, timeout: float | None) -> None:
        """Bounds what listeners do with a checkout's connection, until its next piece of work begins.

        Args:
            connection: The connection as SQLAlchemy has it.
            checkout: Whose it is.
            timeout: Seconds that the statement around it asked for.
        """
        if checkout.bracket is not None:
            self.end_bracket(checkout)
        checkout.bracket = self.watch(connection, timeout)

    def end_bracket(self, checkout: DBAPICheckout, error: BaseException | None = None) -> None:
        """Listeners have done with a checkout's connection.

        Args:
            checkout: Whose it is.
            error: What came of it.

        Raises:
            CallTimeoutError: One of them was stopped.
        """
        limit, checkout.bracket = checkout.bracket, None
        if limit is not None:
            self.settle(limit, error, checkout)

    def set_up(self, connection: Any) -> None:
        """Bounds what is asked of a connection before anybody has it, past all hooks, until `ready`.

        SQLAlchemy, the driver and the user's own listeners do so, in statements of their own.
        """
        caller = self._caller()
        previous = self.setting_up.pop(caller, None)
        if previous is not None:
            previous.end()  # of a connection that was replaced
        limit = self.watch(connection)
        if limit is not None:
            self.setting_up[caller] = limit

    def ready(self, error: BaseException | None = None) -> None:
        """The connection this caller waited for is there, or will not be.

        Args:
            error: What came instead.

        Raises:
            CallTimeoutError: Its setting up was stopped.
        """
        limit = self.setting_up.pop(self._caller(), None)
        if limit is not None:
            self.settle(limit, error)

    def timed_out(
        self,
        guard: Guard,
        seconds: float | None,
        checkout: DBAPICheckout | None = None,
        *,
        commit: bool = False,
    ) -> CallTimeoutError:
        """The error of work that was stopped, noted with its checkout and its request."""
        if checkout is not None:
            checkout.must_discard = True
        self._gate.report.note_stopped()
        errors = self._gate.errors
        return note_guard_error(
            (errors.commit_unknown if commit else errors.timeout)(guard.name, seconds or 0.0)
        )

    def unknown(self, error: CallTimeoutError) -> CommitUnknownError:
        """The error of a COMMIT that timed out as a statement."""
        return self._gate.errors.commit_unknown(error.guard, error.timeout)

    def _caller(self) -> int:
        return id(asyncio.current_task()) if self._is_async else threading.get_ident()


def too_late(seconds: float | None, *, own: bool) -> Outcome:
    """The outcome of a passed deadline: ABANDONED if it was the caller's, or this process stood still."""
    return Outcome.FAILURE if own and not pause_detector.missed(seconds or 0.0) else Outcome.ABANDONED
