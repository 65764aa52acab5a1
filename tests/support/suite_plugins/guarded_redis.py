"""A guard on every client that redis-py's tests make, with a circuit that never opens."""

from __future__ import annotations

import contextlib

import redis
import redis.asyncio
from guarding import after_init, count, pytest_sessionfinish

from guardrails import BreakerPolicy, ConfigurationError, protect

__all__ = ["pytest_sessionfinish"]

NEVER = BreakerPolicy(minimum_number_of_calls=10**6, slow_call_duration_threshold=10**6)
"""The tests provoke one error after the other."""


def guard(client):
    """Guards a client; one that cannot have a guard stays bare: its pool has one already, or is a mock."""
    with contextlib.suppress(ConfigurationError):
        protect(client, name="suite", breaker=NEVER, timeout=20)
        count()


after_init(redis.Redis, guard)
after_init(redis.asyncio.Redis, guard)
