"""The lab of `sql_lab` for pools that applications hold directly, without SQLAlchemy."""

from __future__ import annotations

import asyncpg
import pytest
from sqlalchemy.util import await_only, greenlet_spawn

from guardrails import protect
from support.polling import poll
from support.sql_lab import AsyncLab, Postgres

__all__ = ["AsyncpgLab", "pool_lab_with"]


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


KINDS = {"asyncpg": AsyncpgLab}
