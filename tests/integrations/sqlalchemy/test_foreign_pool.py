"""A stopped connection of another pool is closed, not returned to it."""

from __future__ import annotations

import asyncio
import contextlib

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from guardrails import CallTimeoutError, deadline, protect

LIMIT = 0.2


def test_stopped_connection_does_not_go_back(postgres):
    """The pool that owns a stopped connection gets it back closed, and opens another for the next user."""
    with ConnectionPool(
        postgres.url(""), min_size=1, max_size=1, close_returns=True, kwargs={"autocommit": True}
    ) as pool:
        engine = create_engine("postgresql+psycopg://", poolclass=NullPool, creator=pool.getconn)
        protect(engine, max_concurrent_calls=2, timeout=LIMIT)
        with engine.connect() as connection:
            first = connection.execute(text("select pg_backend_pid()")).scalar()
        with engine.connect() as connection:
            assert connection.execute(text("select pg_backend_pid()")).scalar() == first
            with pytest.raises(CallTimeoutError):
                connection.execute(text("select pg_sleep(30)"))
        with engine.connect() as connection:
            assert connection.execute(text("select pg_backend_pid()")).scalar() != first
        assert pool.get_stats().get("returns_bad") == 1


def test_a_connection_stopped_past_the_hooks_is_not_returned(postgres):
    """Likewise one that was stopped past the hooks, at a deadline."""
    with ConnectionPool(
        postgres.url(""), min_size=1, max_size=1, close_returns=True, kwargs={"autocommit": True}
    ) as pool:
        engine = create_engine("postgresql+psycopg://", poolclass=NullPool, creator=pool.getconn)
        protect(engine, max_concurrent_calls=2)
        error = engine.dialect.dbapi.Error
        with deadline(LIMIT), pytest.raises(error), contextlib.closing(engine.raw_connection()) as raw:
            raw.driver_connection.execute("select pg_sleep(30)")
        assert pool.get_stats().get("returns_bad") == 1
        with engine.connect() as connection:
            assert connection.execute(text("select 1")).scalar() == 1


def test_interrupted_connection_does_not_go_back(postgres, monkeypatch):
    """Likewise one that psycopg left in pipeline mode when Ctrl-C came: its next user would get no rows."""
    enter = psycopg.Pipeline.__enter__

    def interrupted(pipeline):
        enter(pipeline)
        raise KeyboardInterrupt

    with ConnectionPool(
        postgres.url(""), min_size=1, max_size=1, close_returns=True, kwargs={"autocommit": True}
    ) as pool:
        engine = create_engine("postgresql+psycopg://", poolclass=NullPool, creator=pool.getconn)
        guard = protect(engine, max_concurrent_calls=2)
        with monkeypatch.context() as patch, engine.connect() as connection:
            patch.setattr(psycopg.Pipeline, "__enter__", interrupted)
            with pytest.raises(BaseException) as caught:
                connection.execute(text("select :n"), [{"n": 1}, {"n": 2}])
            assert isinstance(caught.value.__context__ or caught.value, KeyboardInterrupt)
        with engine.connect() as connection:
            assert connection.execute(text("select 1")).scalar() == 1
        assert pool.get_stats().get("returns_bad") == 1
        assert guard.snapshot().in_use == 0


async def _in_tasks(url):
    async with AsyncConnectionPool(
        url, min_size=1, max_size=1, open=False, close_returns=True, kwargs={"autocommit": True}
    ) as pool:
        engine = create_async_engine("postgresql+psycopg://", poolclass=NullPool, async_creator=pool.getconn)
        protect(engine, max_concurrent_calls=2, timeout=LIMIT)
        async with engine.connect() as connection:
            first = (await connection.execute(text("select pg_backend_pid()"))).scalar()
            with pytest.raises(CallTimeoutError):
                await connection.execute(text("select pg_sleep(30)"))
        async with engine.connect() as connection:
            assert (await connection.execute(text("select pg_backend_pid()"))).scalar() != first
        assert pool.get_stats().get("returns_bad") == 1


def test_stopped_connection_of_a_loop_does_not_go_back(postgres):
    """Likewise of an asynchronous pool."""
    asyncio.run(_in_tasks(postgres.url("")))
