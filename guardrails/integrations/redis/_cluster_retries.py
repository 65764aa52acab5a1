"""The retries of a guarded cluster client. Depends on redis-py's retries and the guard; must not do I/O."""

from __future__ import annotations

from copy import copy
from typing import Any

import redis.asyncio.retry
from redis._defaults import DEFAULT_RETRY_BASE, DEFAULT_RETRY_CAP, DEFAULT_RETRY_COUNT
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AskError
from redis.retry import Retry

from guardrails._guard.guard import Guard

__all__ = ["is_reduced", "without_retries"]


class _Redirections(Retry):
    """redis-py's default retries, of which a guarded client keeps those after redirections.

    All others would send a command again that a node may have run.
    """

    guard: Guard
    plain: Any

    def get_retries(self) -> int:
        """See redis-py."""
        retries: int = self.plain.get_retries()
        return 0 if self.guard.call_settings.gates[-1].core.enforces else retries

    def call_with_retry(
        self,
        do: Any,
        fail: Any,
        is_retryable: Any = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002 - redis-py's signature
    ) -> Any:
        """See redis-py; used for transactions."""
        return Retry.call_with_retry(self, do, fail, _only(self, is_retryable), with_failure_count)


class _AsyncRedirections(redis.asyncio.retry.Retry):
    """The asyncio twin."""

    guard: Guard
    plain: Any

    def get_retries(self) -> int:
        """See the synchronous twin."""
        retries: int = self.plain.get_retries()
        return 0 if self.guard.call_settings.gates[-1].core.enforces else retries

    async def call_with_retry(
        self,
        do: Any,
        fail: Any,
        is_retryable: Any = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002
    ) -> Any:
        """See the synchronous twin."""
        plain = redis.asyncio.retry.Retry.call_with_retry
        return await plain(self, do, fail, _only(self, is_retryable), with_failure_count)


def _only(retry: Any, is_retryable: Any) -> Any:
    if retry.guard.mode != "enforce":
        return is_retryable
    return lambda error: isinstance(error, AskError)


_DEFAULT_BACKOFF = ExponentialWithJitterBackoff(base=DEFAULT_RETRY_BASE, cap=DEFAULT_RETRY_CAP)
_REDUCED: tuple[tuple[Any, type], ...] = (
    (Retry(_DEFAULT_BACKOFF, DEFAULT_RETRY_COUNT), _Redirections),
    (redis.asyncio.retry.Retry(_DEFAULT_BACKOFF, DEFAULT_RETRY_COUNT), _AsyncRedirections),
)


def without_retries(policy: Any, guard: Guard) -> Any:
    """Returns the retry policy of a guarded client: redis-py's default is reduced, another one is followed.

    Args:
        policy: The client's policy.
        guard: Its guard. While it does not enforce, the default is followed, too.
    """
    for default, reduced in _REDUCED:
        if type(policy) is type(default) and policy == default:
            made: Any = copy(policy)
            made.__class__ = reduced
            made.guard, made.plain = guard, policy
            return made
    return policy


def is_reduced(policy: object) -> bool:
    """True for a policy that `without_retries` has reduced."""
    return isinstance(policy, _Redirections | _AsyncRedirections)
