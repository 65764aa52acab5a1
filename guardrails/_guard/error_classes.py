"""The classes of the errors that one guard raises. Depends on errors; must not import gates or guards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from guardrails.errors import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    CommitUnknownError,
    DeadlineSpentError,
    Reason,
    RejectedError,
    ShedError,
)

__all__ = ["OWN_ERRORS", "ErrorClasses"]


class ErrorClasses(NamedTuple):
    """The classes of the errors that one guard raises."""

    rejected: Mapping[Reason, type[RejectedError]]
    timeout: type[CallTimeoutError]
    commit_unknown: type[CommitUnknownError]

    @classmethod
    def of(
        cls,
        circuit_open: type[CircuitOpenError],
        bulkhead_full: type[BulkheadFullError],
        deadline_spent: type[DeadlineSpentError],
        shed: type[ShedError],
        timeout: type[CallTimeoutError],
        commit_unknown: type[CommitUnknownError],
    ) -> ErrorClasses:
        """Assigns the classes to the reasons of a refusal."""
        rejected: dict[Reason, type[RejectedError]] = {
            "circuit_open": circuit_open,
            "bulkhead_full": bulkhead_full,
            "queue_timeout": bulkhead_full,
            "deadline_spent": deadline_spent,
            "shed": shed,
        }
        return cls(rejected, timeout, commit_unknown)


OWN_ERRORS = ErrorClasses.of(
    CircuitOpenError, BulkheadFullError, DeadlineSpentError, ShedError, CallTimeoutError, CommitUnknownError
)
"""The library's own classes."""
