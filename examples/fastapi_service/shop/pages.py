"""A cache that fails open: while Redis does not answer, what it would have kept is made anew."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

from redis import RedisError
from redis.asyncio import Redis

from guardrails import CallTimeoutError, RejectedError

UNAVAILABLE = (RejectedError, CallTimeoutError, RedisError)


async def cached(cache: Redis, key: str, make: Callable[[], Awaitable[int]], seconds: int = 5) -> int:
    """The number under a key, or a new one where the cache has none or cannot be asked."""
    try:
        found = await cache.get(key)
    except UNAVAILABLE:
        return await make()
    if found is not None:
        return int(found)
    made = await make()
    with contextlib.suppress(*UNAVAILABLE):
        await cache.set(key, made, ex=seconds)
    return made
