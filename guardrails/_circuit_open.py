"""The one error that needs pybreaker, kept apart so that importing guardrails stays fast."""

from __future__ import annotations

import pybreaker

from guardrails.errors import RejectedError

__all__ = ["CircuitOpenError"]


class CircuitOpenError(RejectedError, pybreaker.CircuitBreakerError):
    """The circuit is open, or half-open with all its probes under way.

    Code written for pybreaker keeps working: ``except pybreaker.CircuitBreakerError`` catches it.
    """


CircuitOpenError.__module__ = "guardrails.errors"
