"""The settings of the service, from the environment. Those of the guards have variables of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the servers are, and how many connections one process may have.

    Attributes:
        database_url: SQLAlchemy's URL with an asyncio driver.
        redis_url: The cache.
        pool_size: Connections that stay open.
        max_overflow: Connections besides, opened under load.
        request_timeout: Seconds for one request, waiting included.
    """

    database_url: str
    redis_url: str
    pool_size: int = 10
    max_overflow: int = 0
    request_timeout: float = 5.0

    @classmethod
    def from_environment(cls) -> Settings:
        """Reads the variables named as the attributes; those of the pool begin with ``DB_``."""
        return cls(
            database_url=os.environ.get("DATABASE_URL", "postgresql+asyncpg://postgres@127.0.0.1/shop"),
            redis_url=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
            pool_size=int(os.environ.get("DB_POOL_SIZE", "10")),
            max_overflow=int(os.environ.get("DB_MAX_OVERFLOW", "0")),
            request_timeout=float(os.environ.get("REQUEST_TIMEOUT", "5")),
        )
