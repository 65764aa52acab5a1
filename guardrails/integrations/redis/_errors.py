"""The errors of a guard with ``raise_as="driver"``: redis-py's own kinds, too, by the same names.

redis-py itself must not take them for its server's: a refusal is none of the kinds that it tries again or
reconnects after, and what retries inside a guarded client tries no error of a guard again.
"""

from __future__ import annotations

import redis
from redis.exceptions import ExceptionType

from guardrails import errors
from guardrails._guard.locked_gate import ErrorClasses
from guardrails.errors import CircuitOpenError as _CircuitOpenError

__all__ = ["DRIVER_ERRORS"]


class _RefusedError(redis.RedisError):
    """A refusal for code that handles ``redis.RedisError``."""

    # What redis-py's constructor would set; ours are made without it.
    error_type = ExceptionType.SERVER
    status_code = None
    __repr__ = Exception.__repr__


class CircuitOpenError(_CircuitOpenError, _RefusedError):
    """See guardrails.errors."""


class BulkheadFullError(errors.BulkheadFullError, _RefusedError):
    """See guardrails.errors."""


class DeadlineSpentError(errors.DeadlineSpentError, _RefusedError):
    """See guardrails.errors."""


class ShedError(errors.ShedError, _RefusedError):
    """See guardrails.errors."""


class CallTimeoutError(errors.CallTimeoutError, redis.TimeoutError):
    """See guardrails.errors."""

    error_type = ExceptionType.NETWORK
    status_code = None
    __repr__ = Exception.__repr__


class CommitUnknownError(errors.CommitUnknownError, CallTimeoutError):
    """See guardrails.errors."""


DRIVER_ERRORS = ErrorClasses.of(
    CircuitOpenError, BulkheadFullError, DeadlineSpentError, ShedError, CallTimeoutError, CommitUnknownError
)
