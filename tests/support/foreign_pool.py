"""An engine over a pool that is not SQLAlchemy's: NullPool, and psycopg_pool with ``close_returns``."""

from __future__ import annotations

import contextlib

from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from guardrails import protect

__all__ = ["foreign_pool"]


@contextlib.contextmanager
def foreign_pool(lab, size=1, slots=2):
    """Lets a psycopg lab make its engine over such a pool; yields the pool."""
    is_async = lab.driver == "psycopg" and hasattr(lab, "runner")
    run = lab.runner.run if is_async else lambda result: result
    pool = (AsyncConnectionPool if is_async else ConnectionPool)(
        lab.url().replace("+psycopg", ""),
        min_size=size,
        max_size=size,
        open=False,
        close_returns=True,
        kwargs=lab.backend.connect_args("psycopg"),
    )

    async def opened():
        await pool.open(wait=True)

    run(opened()) if is_async else pool.open(wait=True)
    lab.make_engine = lambda: (
        create_async_engine("postgresql+psycopg://", poolclass=NullPool, async_creator=pool.getconn)
        if is_async
        else create_engine("postgresql+psycopg://", poolclass=NullPool, creator=pool.getconn)
    )
    lab.guard_engine = lambda **options: protect(
        lab.engine, name="db", max_concurrent_calls=slots, breaker=None, **options
    )
    try:
        yield pool
    finally:
        lab.dispose()
        run(pool.close())
