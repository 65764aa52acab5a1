"""The lab of `sql_lab` for pools that applications hold directly, without SQLAlchemy."""

from __future__ import annotations

import contextlib
from types import MappingProxyType

import asyncpg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy.util import await_only, greenlet_spawn

from guardrails import protect
from support.polling import poll
from support.sql_lab import AsyncLab, Postgres, SyncLab

__all__ = ["KINDS", "AsyncpgLab", "PsycopgAsyncLab", "PsycopgLab", "pool_lab_with"]


def pool_lab_with(kinds):
    """A fixture: a pool of each kind to experiment with, which is gone afterwards with all it holds."""

    @pytest.fixture(params=kinds)
    def lab(request, postgres):
        with KINDS[request.param](postgres) as lab:
            yield lab
        poll(lambda: lab.server_side("true") == 0, "connections of the test are gone from the server")

    return lab


class AsyncpgLab(AsyncLab):
    """A pool of asyncpg on a loop of the test's own."""

    def __init__(self, server):
        super().__init__(Postgres(server), "asyncpg")
        self.live = None

    @property
    def pool(self):
        return self.live

    def url(self, port=None):
        return super().url(port).replace("+asyncpg", "")

    def protect(self, *, size=3, guard=None, **options):
        """Opens a pool and guards it."""
        self.live = self.runner.run(self.open(size=size, **options))
        self.guard = protect(self.live, **({"name": "db", "breaker": None} | (guard or {})))
        return self.guard

    async def open(self, *, size=3, **options):
        arguments = {"min_size": 0, "max_size": size} | self.backend.connect_args("asyncpg") | options
        return await asyncpg.create_pool(self.url(), **arguments)

    def dispose(self):
        if self.live is not None:
            self.runner.run(self._close())

    async def _close(self):
        if not self.live._closed:
            self.live.terminate()

    async def _on_checkout(self, work):
        async with self.live.acquire() as connection:
            session = AsyncpgSession(connection)
            result = await greenlet_spawn(work, session)
            if session.transaction is not None:
                await session.transaction.rollback()
            return result

    def call_async(self, make):
        """Runs a coroutine function's coroutine on the lab's loop."""
        return self._run(make)


class AsyncpgSession:
    """A connection out of the pool, in a transaction that its first statement begins."""

    def __init__(self, connection):
        self.connection = connection
        self.transaction = None

    def execute(self, sql, timeout=None):
        if self.transaction is None:
            self.transaction = self.connection.transaction()
            await_only(self.transaction.start())
        return await_only(self.connection.fetchval(sql))

    def commit(self):
        transaction, self.transaction = self.transaction, None
        await_only(transaction.commit())

    def rollback(self):
        transaction, self.transaction = self.transaction, None
        await_only(transaction.rollback())


class _Psycopg:
    """What the labs of psycopg's pools share."""

    live = None
    own_options = MappingProxyType({})

    @property
    def pool(self):
        return self.live

    def url(self, port=None):
        return super().url(port).replace("+psycopg", "")

    def new(self, cls, *, size=3, **options):
        arguments = {"min_size": 0, "max_size": size, "open": False} | options
        return cls(self.url(), kwargs=self.backend.connect_args("psycopg") | self.own_options, **arguments)

    def guard_pool(self, options):
        self.guard = protect(self.live, **({"name": "db", "breaker": None} | (options or {})))
        return self.guard


class PsycopgLab(_Psycopg, SyncLab):
    """A pool of psycopg_pool for threads."""

    plain = ConnectionPool

    def __init__(self, server):
        super().__init__(Postgres(server), "psycopg")

    def protect(self, *, guard=None, **options):
        """Opens a pool and guards it."""
        self.live = self.new(self.plain, **options)
        self.live.open()
        return self.guard_pool(guard)

    def dispose(self):
        if self.live is not None:
            self.live.close()

    def run(self, work):
        with self.live.connection() as connection:
            return work(PsycopgSession(connection, lambda done: done))


class PsycopgAsyncLab(_Psycopg, AsyncLab):
    """A pool of psycopg_pool on a loop of the test's own."""

    plain = AsyncConnectionPool

    def __init__(self, server):
        super().__init__(Postgres(server), "psycopg")

    def protect(self, *, guard=None, **options):
        """Opens a pool and guards it."""

        async def opened():
            self.live = self.new(self.plain, **options)
            await self.live.open()

        self.runner.run(opened())
        return self.guard_pool(guard)

    def dispose(self):
        if self.live is not None:
            self.runner.run(self.live.close())

    async def _on_checkout(self, work):
        async with self.live.connection() as connection:
            return await greenlet_spawn(work, PsycopgSession(connection, await_only))


class PsycopgSession:
    """A connection out of the pool, for both flavours; ``do`` waits for what a call returns."""

    def __init__(self, connection, do):
        self.connection = connection
        self.do = do

    def execute(self, sql, timeout=None):
        """Runs a statement and returns its first value."""
        cursor = self.do(self.connection.execute(sql))
        return self.do(cursor.fetchone())[0] if cursor.description else None

    def commit(self):
        self.do(self.connection.commit())

    def rollback(self):
        self.do(self.connection.rollback())

    @contextlib.contextmanager
    def inside(self, manager):
        """Enters a context manager of either flavour."""
        if self.do is not await_only:
            with manager as entered:
                yield entered
            return
        entered = await_only(manager.__aenter__())
        try:
            yield entered
        except BaseException as error:
            if not await_only(manager.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            await_only(manager.__aexit__(None, None, None))


KINDS = {"asyncpg": AsyncpgLab, "psycopg": PsycopgLab, "psycopg_async": PsycopgAsyncLab}
