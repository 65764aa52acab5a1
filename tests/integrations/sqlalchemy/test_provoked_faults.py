"""Faults that only a PostgreSQL of one's own can be driven into: full, shutting down, out of disk, locked."""

from __future__ import annotations

import contextlib
import re
import resource

import pytest
from sqlalchemy.exc import DBAPIError

from guardrails.testing.servers import PostgresServer
from support.polling import poll
from support.sql_lab import drivers, laboratory

ENOUGH = 17 * 2**20 + 100
"""Bytes of the longest file: more than a segment of the log, and no whole number of pages."""


@pytest.fixture(scope="module")
def mortal():
    """A PostgreSQL that only these tests hurt."""
    with PostgresServer.start(max_connections=8) as server:
        yield server


@pytest.fixture(params=drivers("postgres"))
def lab(request, mortal):
    """An engine of each driver of PostgreSQL on the mortal server."""
    with laboratory(request.param, mortal) as lab:
        yield lab


def state(error):
    """The SQLSTATE a driver's error carries, if it carries one."""
    if error.args and isinstance(error.args[0], dict):  # pg8000
        return error.args[0]["C"]
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def test_serialization_failure_is_an_answer(lab):
    """Who loses to a neighbour's update may try again; the server is well."""
    lab.protect(guard={"timeout": 20})
    lab.aside("create table if not exists contested as select 1 as n")

    def work(session):
        session.execute("set transaction isolation level repeatable read")
        session.execute("select n from contested")
        lab.aside("update contested set n = n + 1")
        session.execute("update contested set n = n + 1")

    with pytest.raises(DBAPIError) as caught:
        lab.run(work)
    assert (state(caught.value.orig), lab.guard.snapshot().failed) == ("40001", 0)


def test_server_without_a_connection_left_is_a_failure(lab):
    """All other connections are in use."""
    lab.protect(guard={"timeout": 20})
    with contextlib.ExitStack() as crowd:
        for _ in range(8):
            crowd.enter_context(lab.backend.connect())
        with pytest.raises(Exception, match="too many clients"):
            lab.query("select 1")
        assert lab.guard.snapshot().failed == 1
    assert lab.query("select 42") == 42


def test_wrong_password_is_a_failure(lab):
    """A failure to connect is a failure, whatever its cause."""
    rules = lab.server.home / "data" / "pg_hba.conf"
    before = rules.read_text()
    lab.aside("create role locked login password 'right'")
    rules.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{before}")
    try:
        lab.aside("select pg_reload_conf()")
        url = re.sub(r"postgres@", "locked:wrong@", lab.url())
        lab.url = lambda port=None: url
        lab.protect(guard={"timeout": 20})
        with pytest.raises(Exception, match="password authentication failed"):
            lab.query("select 1")
        assert lab.guard.snapshot().failed == 1
    finally:
        rules.write_text(before)
        lab.aside("select pg_reload_conf()", "drop role locked")


def test_shutdown_is_a_failure(lab):
    """A statement that the server's going down cuts short did not get its answer."""
    lab.protect(guard={"timeout": 30})
    with lab.meanwhile(lambda: lab.query("select pg_sleep(20)")) as results:
        asleep = "state = 'active' and query like '%pg_sleep(20%' and query not like '%pg_stat_activity%'"
        poll(lambda: lab.pause(0.01) or lab.server_side(asleep) == 1, "the statement runs, not a BEGIN")
        lab.server.restart()
    assert isinstance(results[0], DBAPIError)
    # Some drivers only see that they are alone; asyncpg has a word of its own for it (08003).
    assert state(results[0].orig) in {"57P01", "08003", None}
    assert lab.guard.snapshot().failed == 1
    assert lab.query("select 42") == 42


@contextlib.contextmanager
def on_a_small_disk(server):
    """The server cannot make a file longer than ENOUGH."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ENOUGH, hard))
    try:
        server.restart()  # it inherits the limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    try:
        yield
    finally:
        server.restart()


def test_full_disk_is_a_failure(lab):
    """A table that cannot grow; a limit on the size of files stands for the end of the disk."""
    lab.protect(guard={"timeout": 30})

    def work(session):
        session.execute("create temporary table growing (filling text)")
        session.execute("alter table growing alter filling set storage plain")
        session.execute("insert into growing select repeat('x', 4000) from generate_series(1, 6000)")

    with on_a_small_disk(lab.server):
        with pytest.raises(DBAPIError, match="could not extend file"):
            lab.run(work)
        assert lab.guard.snapshot().failed == 1
        assert lab.query("select 42") == 42
        lab.dispose()


def test_limit_of_a_session_on_temporary_files_is_an_answer(lab):
    """Who may not fill the disk has asked for too much; there is room for others."""
    lab.protect(guard={"timeout": 30})

    def work(session):
        session.execute("set work_mem = '64kB'")
        session.execute("set temp_file_limit = '1MB'")
        session.execute("select count(*) from (select n from generate_series(1, 400000) n order by -n) s")

    with pytest.raises(DBAPIError) as caught:
        lab.run(work)
    assert (state(caught.value.orig), lab.guard.snapshot().failed) == ("53400", 0)
