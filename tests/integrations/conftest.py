"""Real servers, and one way to drive them through every driver, synchronous or not."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import protect
from guardrails.testing.servers import PostgresServer


@pytest.fixture(scope="session")
def postgres():
    """One PostgreSQL for the whole run."""
    with PostgresServer.start(max_connections=100) as server:
        yield server


@pytest.fixture(params=["psycopg", "psycopg_async", "asyncpg"])
def lab(request, postgres):
    """An engine of each driver to experiment with; engines and what they hold are gone afterwards."""
    kind = SyncLab if request.param == "psycopg" else AsyncLab
    with kind(postgres, "asyncpg" if request.param == "asyncpg" else "psycopg") as lab:
        yield lab
    poll(lambda: lab.server_side("true") == 0, "connections of the test are gone from the server")


def poll(condition, what, seconds=5.0):
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so within {seconds} s: {what}"
        time.sleep(0.01)


class Lab:
    """Ways to use an engine that read the same for threads and for tasks."""

    def __init__(self, server, driver):
        self.server = server
        self.driver = driver
        self.engine = None
        self.guard = None

    def protect(self, *, pool_size=2, max_overflow=1, guard=None, **engine_options):
        """Builds an engine and its guard."""
        self.engine = self.make_engine(pool_size=pool_size, max_overflow=max_overflow, **engine_options)
        self.guard = protect(self.engine, **({"name": "db"} | (guard or {})))
        return self.guard

    def server_side(self, where):
        """Counts this test's sessions on the server."""
        with psycopg.connect(self.server.url(""), autocommit=True) as spy:
            query = f"select count(*) from pg_stat_activity where application_name = 'lab' and {where}"
            return spy.execute(query).fetchone()[0]

    def running(self):
        """Counts this test's statements under way on the server."""
        return self.server_side("state = 'active'")

    @contextlib.contextmanager
    def locked(self, table):
        """Holds a table lock from another connection."""
        with psycopg.connect(self.server.url("")) as other:
            other.execute(f"lock table {table} in access exclusive mode")
            yield

    @contextlib.contextmanager
    def frozen(self):
        """Stops the server as a whole: it takes packets and answers nothing."""
        self.server.freeze()
        try:
            yield
        finally:
            self.server.thaw()

    @property
    def pool(self):
        """The live pool."""
        return self.engine.pool


class SyncLab(Lab):
    """Threads."""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.engine is not None:
            self.engine.dispose()

    def make_engine(self, **options):
        return create_engine(
            self.server.url(self.driver), connect_args={"application_name": "lab"}, **options
        )

    def run(self, work):
        """Runs ``work(connection)`` on a checkout."""
        with self.engine.connect() as connection:
            return work(Session(connection))

    def query(self, sql, timeout=None):
        """One statement on a checkout of its own."""
        return self.run(lambda session: session.execute(sql, timeout))

    def call(self, guard, work, timeout=None):
        """Runs ``work()`` inside a call of a guard."""
        with guard.call(timeout):
            return work()

    def all(self, works):
        """Runs several at once and returns what each came to, errors included."""
        results = [None] * len(works)

        def one(index, work):
            try:
                results[index] = work()
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=one, args=pair) for pair in enumerate(works)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    @contextlib.contextmanager
    def meanwhile(self, work, count=1):
        """Runs work in the background; the block's end waits for it. Yields the list of results."""
        results = []

        def one():
            try:
                results.append(work())
            except Exception as error:
                results.append(error)

        threads = [threading.Thread(target=one) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield results
        finally:
            for thread in threads:
                thread.join()

    def pause(self, seconds):
        """Lets time pass."""
        time.sleep(seconds)


class AsyncLab(Lab):
    """Tasks on a loop of the test's own. ``run`` and the rest are called from outside the loop."""

    def __enter__(self):
        self.runner = asyncio.Runner()
        self.runner.get_loop()
        return self

    def __exit__(self, *exc):
        if self.engine is not None:
            self.runner.run(self.engine.dispose())
        left = asyncio.all_tasks(self.runner.get_loop())
        self.runner.close()
        assert not left, f"tasks run on: {left}"

    def make_engine(self, **options):
        name = {"server_settings": {"application_name": "lab"}}
        arguments = name if self.driver == "asyncpg" else {"application_name": "lab"}
        return create_async_engine(self.server.url(self.driver), connect_args=arguments, **options)

    async def _on_checkout(self, work):
        async with self.engine.connect() as connection:
            return await connection.run_sync(lambda sync: work(Session(sync)))

    def run(self, work):
        return self._run(lambda: self._on_checkout(work))

    def query(self, sql, timeout=None):
        return self.run(lambda session: session.execute(sql, timeout))

    def call(self, guard, work, timeout=None):
        async def inside():
            async with guard.call(timeout):
                return await self._collect(work)

        return self._run(inside)

    def all(self, works):
        async def together():
            tasks = [self._collect(work) for work in works]
            return await asyncio.gather(*tasks, return_exceptions=True)

        return self._run(together)

    @contextlib.contextmanager
    def meanwhile(self, work, count=1):
        loop, results = self.runner.get_loop(), []

        async def one():
            try:
                results.append(await self._collect(work))
            except Exception as error:
                results.append(error)

        tasks = [loop.create_task(one()) for _ in range(count)]
        try:
            yield results
        finally:
            self._run(lambda: asyncio.gather(*tasks))

    def pause(self, seconds):
        self._run(lambda: asyncio.sleep(seconds))

    # Work is written as plain calls of this lab; on the loop each such call hands back its coroutine.
    collecting = False

    def _run(self, make):
        if self.collecting:
            return make()

        async def main():
            outcome = make()
            before = asyncio.current_task().cancelling()
            result = await outcome
            assert asyncio.current_task().cancelling() == before, "a cancellation was left behind"
            return result

        return self.runner.run(main(), context=contextvars.copy_context())

    async def _collect(self, work):
        self.collecting = True
        try:
            made = work()
        finally:
            self.collecting = False
        return await made if asyncio.iscoroutine(made) else made


class Session:
    """A checked-out connection; inside an async engine it runs in SQLAlchemy's greenlet."""

    def __init__(self, connection):
        self.connection = connection

    def execute(self, sql, timeout=None):
        """Runs a statement and returns its first value."""
        options = {} if timeout is None else {"guardrails_timeout": timeout}
        result = self.connection.execute(text(sql), execution_options=options)
        return result.scalar() if result.returns_rows else None

    def commit(self):
        self.connection.commit()

    def rollback(self):
        self.connection.rollback()
