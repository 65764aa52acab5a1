"""A guard under every pool that asyncpg's tests make, without a circuit."""

from __future__ import annotations

import asyncpg.pool
from guarding import after_init, count, pytest_sessionfinish

from guardrails import protect

__all__ = ["pytest_sessionfinish"]


def guard(pool):
    """Puts a guard under a pool."""
    protect(pool, timeout=30, breaker=None, leak_after=None, max_wait_duration=30, max_waiting=1000)
    count()


after_init(asyncpg.pool.Pool, guard)
