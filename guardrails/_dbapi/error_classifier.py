"""Classifies the errors of driver work: a failure of the server, an answer, or no evidence.

Depends on the guard and drivers; must not import SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._core.outcome import Outcome
from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._dbapi.drivers import Driver
from guardrails._guard.guard import Guard
from guardrails._runtime.guard_log import LOGIN_REFUSED, NO_ROOM, READ_ONLY
from guardrails._runtime.outcomes import classify

__all__ = ["ErrorClassifier"]

_RAISED_BEFORE = (ArithmeticError, TypeError, ValueError)
"""Python's errors for a parameter that cannot be sent: a number too large, a lone surrogate, a NUL.

RuntimeError and AttributeError are not listed, because a lost connection may raise them.
"""


class ErrorClassifier:
    """Classifies the errors of one engine's work.

    Args:
        guard: The engine's guard.
        driver: Knows the driver's errors; None for an unknown driver.
        errors: The DBAPI's error classes for a wrong statement. One of these without a server code
            means that the driver did not send it.

    Attributes:
        moved: Called when the server refuses writes, so that the pool connects to the new primary.
        out_of_step: See Driver.
        suspect: Called after each failure, so that the pool looks up the server's name again.
    """

    def __init__(self, guard: Guard, driver: Driver | None, errors: tuple[type[Exception], ...]) -> None:
        self._guard = guard
        self._report = guard.call_settings.gates[0].report
        self._driver = driver
        self._unsent = (*errors, *_RAISED_BEFORE)
        self._refused: Callable[[BaseException], bool] = getattr(driver, "unsent", lambda _: False)
        self.out_of_step: Callable[[BaseException], bool] = getattr(driver, "out_of_step", lambda _: False)
        self.moved: Callable[[], None] = _nothing
        self.suspect: Callable[[], None] = _nothing

    def outcome(
        self,
        error: BaseException,
        connection: Any,
        checkout: DBAPICheckout | None,
        *,
        ending: bool,
        proves: bool,
    ) -> Outcome:
        """Returns the outcome of a piece of work that raised.

        Args:
            error: What it raised.
            connection: SQLAlchemy's DBAPI connection.
            checkout: The connection's checkout, if any; notes whether the connection must be discarded.
            ending: True if the work ends a transaction, a savepoint or a checkout.
            proves: True if its success would be evidence; see `StatementRunner.run`.
        """
        if checkout is not None and self.out_of_step(error):
            checkout.must_discard = checkout.out_of_step = True
        if checkout is not None and isinstance(error, AssertionError):
            # psycopg raises it where an executemany() is cancelled early, and leaves pipeline mode on.
            checkout.must_discard = True
            return Outcome.ABANDONED
        if checkout is not None and not isinstance(error, Exception):
            checkout.caller_cancelled = True
        elif checkout is not None and checkout.caller_cancelled and ending:
            return Outcome.ABANDONED
        read_only = self._has_become_read_only(error, connection, checkout)
        policy = self._guard.call_settings.policy
        outcome = classify(error, None if policy is None else policy.is_failure)
        answered = Outcome.SUCCESS if proves else Outcome.NEUTRAL
        noted = self._guard if checkout is None else checkout.guard
        if outcome is not Outcome.FAILURE or (policy is not None and policy.is_failure is not None):
            if outcome is Outcome.FAILURE:
                noted.call_settings.note_error(error)
            return answered if outcome is Outcome.SUCCESS else outcome
        failed = read_only or (None if self._driver is None else self._driver.failed(error))
        if failed is None and (isinstance(error, self._unsent) or self._refused(error)):
            return Outcome.ABANDONED  # the error has no code of the server: the driver sent nothing
        if failed is False:
            return answered
        self.suspect()
        noted.call_settings.note_error(error)
        return Outcome.FAILURE

    def outcome_of_connect(self, error: BaseException) -> Outcome:
        """Returns the outcome of a failed connect: a failure, unless the driver sent nothing to a server."""
        driver = self._driver
        if self._refused(error):
            return Outcome.ABANDONED
        if driver is not None and driver.has_no_room(error):
            self._report.note_cause(NO_ROOM)
        elif driver is not None and driver.refuses_login(error):
            self._report.note_cause(LOGIN_REFUSED)
        self._guard.call_settings.note_error(error)
        return classify(error, None)

    def _has_become_read_only(
        self, error: BaseException, connection: Any, checkout: DBAPICheckout | None
    ) -> bool:
        """True if the server no longer takes writes; its connection is then dropped on return."""
        driver = self._driver
        if driver is None or not isinstance(error, Exception) or not driver.refuses_writes(error, connection):
            return False
        self._report.note_cause(READ_ONLY)
        if self._guard.mode == "enforce":
            if checkout is not None:
                checkout.must_discard = True
            self.moved()
        return True


def _nothing() -> None:
    pass
