"""Keeps a web service up when its database or Redis slows down.

::

    from guardrails import guarded, protect

    db = protect(engine)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails._budget import RetryBudget
from guardrails._deadline import deadline, remaining
from guardrails._lazily import on_use
from guardrails._policy import BreakerPolicy
from guardrails._snapshot import GuardSnapshot
from guardrails.errors import (
    BulkheadFullError,
    CallTimeoutError,
    CommitUnknownError,
    ConfigurationError,
    DeadlineSpentError,
    GuardrailsError,
    RejectedError,
    ShedError,
)

if TYPE_CHECKING:
    from guardrails._bulkhead import Bulkhead
    from guardrails._circuit_open import CircuitOpenError
    from guardrails._circuitbreaker import CircuitBreaker
    from guardrails._decorator import guarded
    from guardrails._guard import Guard
    from guardrails._protect import protect
    from guardrails._retrying import retrying

__all__ = [
    "BreakerPolicy",
    "Bulkhead",
    "BulkheadFullError",
    "CallTimeoutError",
    "CircuitBreaker",
    "CircuitOpenError",
    "CommitUnknownError",
    "ConfigurationError",
    "DeadlineSpentError",
    "Guard",
    "GuardSnapshot",
    "GuardrailsError",
    "RejectedError",
    "RetryBudget",
    "ShedError",
    "deadline",
    "guarded",
    "protect",
    "remaining",
    "retrying",
]

__version__ = "0.1.0"

_ON_USE = {
    "Bulkhead": "guardrails._bulkhead",
    "CircuitBreaker": "guardrails._circuitbreaker",
    "CircuitOpenError": "guardrails._circuit_open",
    "Guard": "guardrails._guard",
    "guarded": "guardrails._decorator",
    "protect": "guardrails._protect",
    "retrying": "guardrails._retrying",
}
"""Names that need pybreaker, which imports redis where that is installed (0.3 s), or asyncio."""

__getattr__ = on_use(__name__, _ON_USE)
