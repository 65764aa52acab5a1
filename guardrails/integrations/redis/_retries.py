"""Reads the user's retry policy of a connection; redis-py's default policy is ignored. Must not do I/O."""

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
"""The default policies of redis-py: ten retries. On a frozen server they turn a timeout of 5 seconds into
59, and they send commands again that the server may have run already."""


class RetryPolicy:
    """Decides if and when a piece of work is retried.

    Args:
        policy: The connection's ``redis.retry.Retry``, of either flavour.

    Attributes:
        policy: The same.
        max_retries: Retries that the user asked for; negative is no limit.
        errors: Errors that are retried, after a clean-up.
    """

    __slots__ = ("errors", "max_retries", "policy")

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.max_retries: int = 0 if policy in _DEFAULTS else policy.get_retries()
        self.errors: tuple[type[Exception], ...] = policy._supported_errors  # noqa: SLF001

    def run(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None,
        with_failure_count: bool,  # noqa: FBT001 - redis-py's signature
    ) -> Any:
        """Runs work without a guard, as redis-py does, but does not retry an error of a guard.

        Returns:
            The result of redis-py's method: a coroutine for asyncio.
        """

        def retryable(error: Exception) -> bool:
            return not isinstance(error, GuardrailsError) and (is_retryable is None or is_retryable(error))

        return self.policy.call_with_retry(do, fail, retryable, with_failure_count)

    def delay(self, failures: int, until: float | None, *, as_asked: bool = False) -> float | None:
        """Returns the seconds before the next try; None if there is no retry, or no time for it.

        Args:
            failures: Tries that have failed.
            until: The deadline, or None.
            as_asked: Whether redis-py's default policy counts, too, as it does without a guard.
        """
        retries = self.policy.get_retries() if as_asked else self.max_retries
        if 0 <= retries < failures:
            return None
        backoff = self.policy._backoff  # noqa: SLF001 - there is no public getter
        if failures == 1:
            backoff.reset()
        seconds: float = backoff.compute(failures)
        return None if until is not None and monotonic() + seconds >= until else seconds
