"""The engine, the Redis client, and the guard in front of each. Nothing is opened before it is used."""

from __future__ import annotations

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import protect
from shop.settings import Settings

settings = Settings.from_environment()

engine = create_async_engine(
    settings.database_url, pool_size=settings.pool_size, max_overflow=settings.max_overflow
)
cache = Redis.from_url(settings.redis_url, max_connections=20)

db = protect(engine, name="orders-db", timeout=2.0)
cache_guard = protect(cache, name="cache", timeout=0.2)
reports = db.compartment("reports", timeout=1.0)
