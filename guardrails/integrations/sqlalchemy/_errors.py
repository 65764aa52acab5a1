"""The errors of a guard with ``raise_as="driver"``: they are also instances of SQLAlchemy's errors.

Depends on SQLAlchemy's errors; must not import engines. SQLAlchemy does not mistake them for errors of the
server: it checks only DBAPI errors for lost connections, and does not wrap a ``DontWrapMixin``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import DontWrapMixin, OperationalError

from guardrails import errors
from guardrails._guard.error_classes import ErrorClasses
from guardrails.errors import CircuitOpenError as _CircuitOpenError

__all__ = ["DRIVER_ERRORS"]


class _DriverError(OperationalError, DontWrapMixin):
    """An error for code that handles ``OperationalError``; it wraps no DBAPI error."""

    # SQLAlchemy's constructor sets these; our errors do not call it.
    statement = params = orig = ismulti = None
    hide_parameters = True

    @property
    def detail(self) -> list[str]:  # type: ignore[override]
        """The details added with ``add_detail``."""
        found: list[str] = self.__dict__.setdefault("_detail", [])
        return found


class _RefusedError(_DriverError):
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class CircuitOpenError(_CircuitOpenError, _RefusedError):
    """See guardrails.errors."""


class BulkheadFullError(errors.BulkheadFullError, _RefusedError):
    """See guardrails.errors."""


class DeadlineSpentError(errors.DeadlineSpentError, _RefusedError):
    """See guardrails.errors."""


class ShedError(errors.ShedError, _RefusedError):
    """See guardrails.errors."""


class CallTimeoutError(errors.CallTimeoutError, _DriverError):
    """See guardrails.errors."""


class CommitUnknownError(errors.CommitUnknownError, CallTimeoutError):
    """See guardrails.errors."""


class ConnectionRevokedError(errors.ConnectionRevokedError, _RefusedError):
    """See guardrails.errors."""


DRIVER_ERRORS = ErrorClasses.of(
    CircuitOpenError, BulkheadFullError, DeadlineSpentError, ShedError, CallTimeoutError, CommitUnknownError
)
