"""SQLAlchemy's own tests, bare and guarded: the same outcome, but for what is listed here."""

from __future__ import annotations

import contextlib

import psycopg
import pymysql
import pytest

from guardrails.testing.servers import PostgresServer
from support import upstream
from support.mysql_server import start_mariadb

SECONDS = upstream.chosen(600, 2400)

ENGINE = [
    "test/engine/test_pool.py",
    "test/engine/test_execute.py",
    "test/engine/test_transaction.py",
    "test/engine/test_reconnect.py",
]
RESULTS = ["test/sql/test_resultset.py"]
ASYNCIO = ["test/ext/asyncio"]
SESSION = ["test/orm/test_session.py"]
PINNED = {
    "pysqlite": [*ENGINE, *RESULTS, *SESSION],
    "psycopg": ["test/engine/test_execute.py", "test/engine/test_transaction.py", *RESULTS],
    "asyncpg": ASYNCIO,
    "pymysql": ["test/engine/test_transaction.py", *RESULTS],
}
EVERYTHING = [*ENGINE, *RESULTS, *ASYNCIO, *SESSION, "test/dialect/test_suite.py"]
DRIVERS = [*PINNED, "aiosqlite", "psycopg_async", "psycopg2", "aiomysql", "asyncmy"]
FILES = upstream.chosen(PINNED, dict.fromkeys(DRIVERS, EVERYTHING))

MEANT = {
    "test.ext.asyncio.test_engine.AsyncEngineTest*::test_pool_exhausted_*_timeout": (
        "the pool is empty on purpose: the guard refuses before the pool's own TimeoutError"
    ),
    "test.engine.test_execute.EngineEventsTest::test_close_parameter*": (
        "copy.copy(engine) makes two engines with a pool of one each; they share one guard with one slot"
    ),
    "test.engine.test_reconnect.MockReconnectTest::test_conn_reusable": (
        "psycopg2's connect is given connect_timeout, and the test compares the arguments of a mock"
    ),
    "test.engine.test_pool.ResetOnReturnTest::test_*_via_engine*": (
        "number and socket of mysqlclient's connection are read, and the test compares the calls of a mock"
    ),
}
"""The differences that are meant, each with its reason."""


@contextlib.contextmanager
def database(driver):
    """The URL of a new database with the schemas that the tests ask for; a visible skip without MariaDB."""
    if "sqlite" in driver:
        yield f"sqlite+{driver}:///:memory:"
    elif "my" in driver:
        with start_mariadb("--max-connections=200", "--character-set-server=utf8mb4") as server:
            root = {"host": "127.0.0.1", "port": server.port, "user": "root", "ssl_disabled": True}
            with pymysql.connect(**root) as connection, connection.cursor() as cursor:
                for name in ("test", "test_schema", "test_schema_2"):
                    cursor.execute(f"create database {name}")
                cursor.execute("create user scott@'127.0.0.1' identified by 'tiger'")
                cursor.execute("grant all on *.* to scott@'127.0.0.1'")
            yield f"mysql+{driver}://scott:tiger@127.0.0.1:{server.port}/test?charset=utf8mb4"
    else:
        with PostgresServer.start(
            max_connections=200, settings={"max_prepared_transactions": "20"}
        ) as server:
            with psycopg.connect(server.url(""), autocommit=True) as root:
                root.execute("create database test")
            with psycopg.connect(server.url("", "test"), autocommit=True) as root:
                root.execute("create schema test_schema; create schema test_schema_2")
            yield server.url(driver, "test")


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("driver", FILES)
def test_sqlalchemys_own_tests_end_as_they_do_without_a_guard(driver, tmp_path, tmp_path_factory):
    """The bare and the guarded run have a database server each."""
    source = upstream.sdist("sqlalchemy", tmp_path_factory.getbasetemp())
    words = {}
    with contextlib.ExitStack() as stack:
        for kind in ("bare", "guarded"):
            url = stack.enter_context(database(driver))
            words[kind] = ["--maxfail=100000", f"--dburi={url}", *FILES[driver]]
        ran = upstream.run_pytest(source, "guarded_sqlalchemy", words, tmp_path, seconds=SECONDS)
    assert ran.passed > 100
    assert ran.guards > 10
    assert upstream.differences(ran.bare, ran.guarded, MEANT) == []
