"""One way to drive the SQL servers through every driver, synchronous or not."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import re
import threading
import time
import warnings
from importlib.util import find_spec

import psycopg
import pymysql
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import CallTimeoutError, protect
from support.mysql_server import MySQLServer, skip_on_mysql
from support.polling import poll

DRIVERS = {
    "psycopg": ("postgres", "psycopg", False),
    "psycopg_async": ("postgres", "psycopg", True),
    "psycopg2": ("postgres", "psycopg2", False),
    "pg8000": ("postgres", "pg8000", False),
    "asyncpg": ("postgres", "asyncpg", True),
    "pymysql": ("mariadb", "pymysql", False),
    "aiomysql": ("mariadb", "aiomysql", True),
    "asyncmy": ("mariadb", "asyncmy", True),
}
if find_spec("MySQLdb") is not None:  # it has no wheels for Linux, so it may be missing
    DRIVERS["mysqldb"] = ("mariadb", "mysqldb", False)


def drivers(server=None, *, is_async=None):
    """The names of the drivers that fit. A test that cannot be about the others is not collected for them."""
    return [
        name
        for name, (kind, _, on_loop) in DRIVERS.items()
        if server in {None, kind} and is_async in {None, on_loop}
    ]


def those(*names):
    """A mark for a test that is about these drivers; one that is not installed is left out."""
    return pytest.mark.parametrize("lab", [name for name in names if name in DRIVERS], indirect=True)


def lab_with(names):
    """A fixture: an engine of each driver to experiment with, which is gone afterwards with all it holds."""

    @pytest.fixture(params=names)
    def lab(request):
        server = request.getfixturevalue(DRIVERS[request.param][0])
        with laboratory(request.param, server) as lab:
            yield lab

    return lab


on_loops = pytest.mark.parametrize("lab", drivers(is_async=True), indirect=True)
"""For a test that is about event loops."""
in_threads = pytest.mark.parametrize("lab", drivers(is_async=False), indirect=True)
"""For a test that is about threads."""
on_postgres = pytest.mark.parametrize("lab", drivers("postgres"), indirect=True)
"""For a test in PostgreSQL's own words."""


@contextlib.contextmanager
def laboratory(name, server):
    """Builds the lab for a driver, by its name here, and a server."""
    kind, driver, is_async = DRIVERS[name]
    with (AsyncLab if is_async else SyncLab)(BACKENDS[kind](server), driver) as lab:
        yield lab
    if driver == "psycopg" and is_async:
        # The streams of dropped connections, here and not in whatever test the collector would pick.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    poll(lambda: lab.server_side("true") == 0, "connections of the test are gone from the server")


class Postgres:
    """What a test needs of PostgreSQL besides an engine. Tests are written in its words."""

    def __init__(self, server):
        self.server = server

    def url(self, driver, port=None):
        return self.server.url(driver).replace(str(self.server.port), str(port or self.server.port))

    def connect_args(self, driver):
        name = {"application_name": "lab"}
        if driver == "pg8000":  # it would load every root certificate of the machine, as PyMySQL would
            return {**name, "ssl_context": False}
        return {"server_settings": name} if driver == "asyncpg" else name

    def connect(self):
        """A connection of the test's own, unguarded."""
        return psycopg.connect(self.server.url(""), autocommit=True)

    @staticmethod
    def run(connection, sql):
        """Runs a statement on such a connection; returns its first value."""
        cursor = connection.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None

    def say(self, sql):
        """A statement, in this server's words."""
        return sql

    def sessions(self, where):
        """The statement that counts the tests' sessions."""
        return f"select count(*) from pg_stat_activity where application_name = 'lab' and {where}"

    def lock(self, table):
        """The statements that lock a table until the connection closes."""
        return ["begin", f"lock table {table} in access exclusive mode"]

    @contextlib.contextmanager
    def slow_commits(self, table):
        """Yields what makes the COMMIT of an insert into the table hang from then on."""
        with self.connect() as connection:
            connection.execute(
                "create function dawdle() returns trigger language plpgsql as "
                "$$begin perform pg_sleep(30); return null; end$$;"
                f"create constraint trigger slow_commit after insert on {table} "
                "deferrable initially deferred for each row execute function dawdle();"
            )
            try:
                yield lambda: None
            finally:
                connection.execute(f"drop trigger slow_commit on {table}; drop function dawdle")


INNODB_REFRESH = 0.2
"""Seconds between two looks at InnoDB's transactions and locks, of which MariaDB and MySQL show a copy.

They renew it only if nobody has looked for 0.1 s: a poll that is quicker sees for ever what it saw first.
"""


class MariaDB:
    """The same of MariaDB."""

    words = (
        (re.compile(r"from pg_sleep\((.*?)\)"), r"from dual where sleep(\1) = 0"),
        (re.compile(r"\bpg_sleep\("), "sleep("),
        (re.compile(r"select pg_terminate_backend\(pg_backend_pid\(\)\)"), "kill connection_id()"),
        (re.compile(r"select pg_terminate_backend\((\d+)\)"), r"kill \1"),
        (re.compile(r"pg_backend_pid"), "connection_id"),
        (re.compile(r"show statement_timeout"), "select @@max_statement_time"),
        (re.compile(r"select 1/0"), "signal sqlstate '22012'"),
        (re.compile(r"state = 'active'"), "command <> 'Sleep'"),
        (re.compile(r"generate_series\(1, (\d+)\) n"), r"(select seq n from seq_1_to_\1) numbers"),
    )

    mysqls_words = (
        (
            re.compile(r"\(select seq n from seq_1_to_(\d+)\) numbers"),
            r"(with recursive s(n) as (select 1 union all select n + 1 from s where n < \1) table s) s",
        ),
        (
            re.compile(r"set max_statement_time = ([\d.]+)"),
            lambda found: f"set max_execution_time = {float(found[1]) * 1000:.0f}",
        ),
        (re.compile(r"@@max_statement_time"), "@@max_execution_time"),
        (re.compile(r"@@tx_isolation"), "@@transaction_isolation"),
        (re.compile(r"information_schema\.session_status"), "performance_schema.session_status"),
    )

    def __init__(self, server):
        self.server = server
        if isinstance(server, MySQLServer):
            self.words += self.mysqls_words

    def url(self, driver, port=None):
        return f"mysql+{driver}://lab@127.0.0.1:{port or self.server.port}/guardrails"

    def connect_args(self, driver):
        # PyMySQL would load every root certificate of the machine for a server that speaks no TLS.
        return {"ssl_disabled": True} if driver == "pymysql" else {}

    def connect(self):
        address = {"host": "127.0.0.1", "port": self.server.port, "user": "root"}
        return pymysql.connect(**address, database="guardrails", autocommit=True, ssl_disabled=True)

    @staticmethod
    def run(connection, sql):
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if cursor.description else None

    def say(self, sql):
        for theirs, ours in self.words:
            sql = theirs.sub(ours, sql)
        return sql

    def sessions(self, where):
        return f"select count(*) from information_schema.processlist where user = 'lab' and {self.say(where)}"

    def lock(self, table):
        return [f"lock tables {table} write"]

    @contextlib.contextmanager
    def slow_commits(self, table):
        with self.connect() as connection:
            yield lambda: self.run(connection, "flush tables with read lock")


BACKENDS = {"postgres": Postgres, "mariadb": MariaDB}


class Lab:
    """Ways to use an engine that read the same for threads and for tasks, and for every server."""

    def __init__(self, backend, driver):
        self.backend = backend
        self.server = backend.server
        self.driver = driver
        self.engine = None
        self.guard = None

    def url(self, port=None):
        """Where the engine connects to; or would, at another port."""
        return self.backend.url(self.driver, port)

    def protect(self, *, pool_size=2, max_overflow=1, guard=None, **engine_options):
        """Builds an engine and its guard."""
        self.engine = self.make_engine(pool_size=pool_size, max_overflow=max_overflow, **engine_options)
        self.guard = protect(self.engine, **({"name": "db"} | (guard or {})))
        return self.guard

    def connect(self):
        """Opens a connection, however long a busy machine takes: it has no limit and is not counted."""
        self.guard.set_mode("off")
        try:
            self.query("select 1")
        finally:
            self.guard.set_mode("enforce")

    def soon(self, sql="select 42"):
        """The answer to a query, as soon as one comes in time: a busy machine may take long to connect."""
        answers = []

        def ask():
            with contextlib.suppress(CallTimeoutError):
                answers.append(self.query(sql, timeout=5))
            return answers

        poll(ask, "a caller is answered")
        return answers[0]

    def skip_on_mysql(self, why):
        """Skips the test visibly on MySQL, with what MySQL does otherwise than MariaDB."""
        skip_on_mysql(self.server, why)

    def until(self, condition, what, seconds=20.0):
        """Waits for a state; on an event loop, which runs meanwhile, what was stopped ends."""
        poll(lambda: condition() or self.pause(0.01), what, seconds)

    def server_side(self, where):
        """Counts this test's sessions on the server."""
        return self.aside(self.backend.sessions(where))

    def running(self):
        """Counts this test's statements under way on the server."""
        return self.server_side("state = 'active'")

    def aside(self, *statements):
        """Runs statements on a connection of their own, unguarded; returns the last one's first value."""
        with self.backend.connect() as connection:
            return [self.backend.run(connection, sql) for sql in statements][-1]

    @contextlib.contextmanager
    def locked(self, table):
        """Holds a table lock from another connection."""
        with self.backend.connect() as other:
            for sql in self.backend.lock(table):
                self.backend.run(other, sql)
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
        self.dispose()

    def dispose(self):
        """Closes the idle connections."""
        if self.engine is not None:
            self.engine.dispose()

    def make_engine(self, **options):
        return create_engine(self.url(), connect_args=self.backend.connect_args(self.driver), **options)

    def run(self, work):
        """Runs ``work(connection)`` on a checkout."""
        with self.engine.connect() as connection:
            return work(Session(connection, self.backend))

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
        self.dispose()
        left = self.runner.run(self._stragglers())
        self.runner.close()
        assert not left, f"tasks run on: {left}"

    def dispose(self):
        if self.engine is not None:
            self.runner.run(self.engine.dispose())

    async def _stragglers(self):
        """What still runs when an order to the server has had its time."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        return left and (await asyncio.wait(left, timeout=2))[1]

    def make_engine(self, **options):
        arguments = self.backend.connect_args(self.driver)
        return create_async_engine(self.url(), connect_args=arguments, **options)

    async def _on_checkout(self, work):
        async with self.engine.connect() as connection:
            return await connection.run_sync(lambda sync: work(Session(sync, self.backend)))

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

    def __init__(self, connection, backend):
        self.connection = connection
        self.backend = backend

    def execute(self, sql, timeout=None):
        """Runs a statement and returns its first value."""
        options = {} if timeout is None else {"guardrails_timeout": timeout}
        result = self.connection.execute(text(self.backend.say(sql)), execution_options=options)
        return result.scalar() if result.returns_rows else None

    def commit(self):
        self.connection.commit()

    def rollback(self):
        self.connection.rollback()
