"""The errors of a guard with ``raise_as="driver"``: they are also instances of redis-py's errors.

Depends on redis-py's errors; must not import clients. redis-py does not mistake them for errors of the
server: it does not retry or reconnect after a refusal, and a guarded client does not retry after an error of
a guard.
"""

from __future__ import annotations

import redis
from redis.exceptions import ExceptionType

from guardrails import errors
from guardrails._guard.error_classes import ErrorClasses
from guardrails.errors import CircuitOpenError as _CircuitOpenError

__all__ = ["DRIVER_ERRORS"]


class _RefusedError(redis.RedisError):
    """A refusal for code that handles ``redis.RedisError``."""

    # redis-py's constructor sets these; our errors do not call it.
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
