"""The user's retry policy for a connection; redis-py's own default is none of his. Knows no I/O."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from time import monotonic
from typing import Any

import redis
import redis.asyncio

from guardrails.errors import GuardrailsError

__all__ = ["RetryPolicy"]

_DEFAULTS = tuple(
    inspect.signature(client.__init__).parameters["retry"].default
    for client in (redis.Redis, redis.asyncio.Redis)
)
"""What a client gets that is told nothing: ten retries. On a frozen server they make 59 seconds of a
timeout of five, and they send again what may have been done already."""


class RetryPolicy:
    """When a piece of work is tried again.

    Args:
        policy: The connection's ``redis.retry.Retry``, of either flavour.

    Attributes:
        policy: The same.
        most: How many retries the user asked for; negative is no limit.
        errors: What is tried again, and cleaned up after.
    """

    __slots__ = ("errors", "most", "policy")

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.most: int = 0 if policy in _DEFAULTS else policy.get_retries()
        self.errors: tuple[type[Exception], ...] = policy._supported_errors  # noqa: SLF001

    def run(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None,
        with_failure_count: bool,  # noqa: FBT001 - redis-py's signature
    ) -> Any:
        """Runs what no guard times, as redis-py would; an error of a guard's is not tried again.

        Returns:
            What redis-py's method returns: a coroutine for asyncio.
        """

        def retryable(error: Exception) -> bool:
            return not isinstance(error, GuardrailsError) and (is_retryable is None or is_retryable(error))

        return self.policy.call_with_retry(do, fail, retryable, with_failure_count)

    def pause(self, failures: int, until: float | None) -> float | None:
        """Seconds to wait before the next try; None when there is none, or no time for it."""
        if 0 <= self.most < failures:
            return None
        backoff = self.policy._backoff  # noqa: SLF001 - there is no public getter
        if failures == 1:
            backoff.reset()
        seconds: float = backoff.compute(failures)
        return None if until is not None and monotonic() + seconds >= until else seconds
