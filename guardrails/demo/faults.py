"""The fault of each scenario, as a context manager: it holds during the block.

Depends on the database and the cache; must not know the load or the figures.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from guardrails.demo.database import Database
    from guardrails.testing.servers import ValkeyServer

__all__ = ["fault"]

_SLOWER = 2.0


@asynccontextmanager
async def fault(
    name: str, database: Database, cache: ValkeyServer, mend: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Causes the fault of a scenario for the time of the block.

    Args:
        name: Name of the scenario.
        database: The database that the twins share.
        cache: The cache that they share.
        mend: Closes the connections that the twins' leaking endpoint has kept.
    """
    if name == "lock":
        async with database.engine.connect() as connection:
            await connection.execute(text("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"))
            yield
            await connection.rollback()
    elif name == "slow":
        await database.set_pace(_SLOWER)
        try:
            yield
        finally:
            await database.set_pace(0.0)
    elif name == "redis-freeze":
        cache.freeze()
        try:
            yield
        finally:
            cache.thaw()
    else:
        # In a burst the arrivals are the fault. The leak is in the app: the load calls its endpoint.
        yield
        if name == "leak":
            await mend()
