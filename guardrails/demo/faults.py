"""What goes wrong, as one context each: it begins on the way in and is over on the way out.

Knows how to hurt the database, the cache or the app; never when, nor what anybody measures.
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
    """The fault of a scenario, real from the first line of the body to the last.

    Args:
        name: Name of the scenario.
        database: What the twins share.
        cache: What they share, too.
        mend: Closes what the twins' leaky endpoint has kept.
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
        # In a burst the arrivals are the fault, and the leak is in the app: people are sent to it.
        yield
        if name == "leak":
            await mend()
