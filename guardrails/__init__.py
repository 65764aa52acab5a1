"""Keeps a web service up when its database or Redis slows down.

::

    from guardrails import guarded, protect

    db = protect(engine)
"""

from __future__ import annotations

import guardrails._util.identity  # noqa: F401 - nothing may start where another distribution's files are mixed in
from guardrails._util.lazy import on_use

TYPE_CHECKING = False  # as type checkers know it; ``typing`` alone would be most of this import's time
if TYPE_CHECKING:
    from guardrails import errors as errors
    from guardrails import events as events
    from guardrails._core.adaptive import Adaptive
    from guardrails._core.policy import BreakerPolicy
    from guardrails._guard.bulkhead import Bulkhead
    from guardrails._guard.decorator import guarded
    from guardrails._guard.guard import Guard
    from guardrails._guard.protect import protect
    from guardrails._guard.snapshot import GuardSnapshot
    from guardrails._pool.status import pool_status
    from guardrails._pybreaker.breaker import CircuitBreaker
    from guardrails._retry.budget import RetryBudget
    from guardrails._retry.retrying import retrying
    from guardrails._runtime.holding import holding
    from guardrails._runtime.scope import deadline, remaining
    from guardrails.errors import (
        BulkheadFullError,
        CallAbandonedError,
        CallTimeoutError,
        CircuitOpenError,
        ClientGoneError,
        CommitUnknownError,
        ConfigurationError,
        ConnectionRevokedError,
        DeadlineSpentError,
        GuardrailsError,
        RejectedError,
        ShedError,
        WarmUpError,
    )

__all__ = [
    "Adaptive",
    "BreakerPolicy",
    "Bulkhead",
    "BulkheadFullError",
    "CallAbandonedError",
    "CallTimeoutError",
    "CircuitBreaker",
    "CircuitOpenError",
    "ClientGoneError",
    "CommitUnknownError",
    "ConfigurationError",
    "ConnectionRevokedError",
    "DeadlineSpentError",
    "Guard",
    "GuardSnapshot",
    "GuardrailsError",
    "RejectedError",
    "RetryBudget",
    "ShedError",
    "WarmUpError",
    "deadline",
    "guarded",
    "holding",
    "pool_status",
    "protect",
    "remaining",
    "retrying",
]

__version__ = "0.2.0"

_ON_USE = {
    **dict.fromkeys(("errors", "events"), None),
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "guardrails.errors"),
    "Adaptive": "guardrails._core.adaptive",
    "BreakerPolicy": "guardrails._core.policy",
    "Bulkhead": "guardrails._guard.bulkhead",
    "CircuitBreaker": "guardrails._pybreaker.breaker",
    "CircuitOpenError": "guardrails.errors",
    "Guard": "guardrails._guard.guard",
    "GuardSnapshot": "guardrails._guard.snapshot",
    "RetryBudget": "guardrails._retry.budget",
    "deadline": "guardrails._runtime.scope",
    "guarded": "guardrails._guard.decorator",
    "holding": "guardrails._runtime.holding",
    "pool_status": "guardrails._pool.status",
    "protect": "guardrails._guard.protect",
    "remaining": "guardrails._runtime.scope",
    "retrying": "guardrails._retry.retrying",
}
"""The module that has each public name. A name is imported when it is first used: some need pybreaker, which
imports redis where that is installed (0.3 s), and the commands must take hold of Ctrl-C in milliseconds."""

__getattr__ = on_use(__name__, _ON_USE)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
