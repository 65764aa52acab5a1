"""A primary that has become read-only, and the way to the next one, on real servers."""

from __future__ import annotations

import contextlib
import logging
import time

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import BreakerPolicy, protect
from guardrails.testing.proxy import FaultProxy
from guardrails.testing.servers import PostgresServer
from support.mysql_server import start_mariadb
from support.polling import poll
from support.sql_lab import BACKENDS, DRIVERS, AsyncLab, SyncLab, drivers, on_postgres

LIMIT = 5.0
"""Seconds from the move of the name to the first write, as the issue of fail-overs demands."""

READ_ONLY = "the server is read-only"


@pytest.fixture(params=drivers())
def two(request):
    """A lab, and two servers of its driver's kind: the primary, and the next one."""
    kind, driver, is_async = DRIVERS[request.param]
    start = PostgresServer.start if kind == "postgres" else start_mariadb
    with start() as first, start() as second:
        for server in (first, second):
            _prepare(BACKENDS[kind](server))
        with (AsyncLab if is_async else SyncLab)(BACKENDS[kind](first), driver) as lab:
            lab.next = BACKENDS[kind](second)
            yield lab


def _prepare(backend):
    with backend.connect() as connection:
        if not isinstance(backend, BACKENDS["postgres"]):
            backend.run(connection, "create user lab@'127.0.0.1'")
            backend.run(connection, "grant all on guardrails.* to lab@'127.0.0.1'")
        backend.run(connection, "create table orders (n int)")


def demote(backend):
    """Makes a server read-only, as a fail-over tool does, for the sessions that are open as well."""
    with backend.connect() as connection:
        if isinstance(backend, BACKENDS["postgres"]):
            backend.run(connection, "alter system set default_transaction_read_only = on")
            backend.run(connection, "select pg_reload_conf()")
        else:
            backend.run(connection, "set global read_only = 1")


def move(proxy, port):
    """Makes the name lead to another server: open connections stay where they are."""
    proxy._relay._upstream = ("127.0.0.1", port)


def write(lab):
    def insert(session):
        session.execute("insert into orders values (1)")
        session.commit()
        return True

    return lab.run(insert)


def try_to_write(lab):
    with contextlib.suppress(Exception):
        return write(lab)
    return False


@pytest.mark.sampled(2)
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_writes_work_again_within_five_seconds_of_the_move(two, busy, caplog):
    """Fifteen connections to the old primary, under load and at rest; nothing is restarted."""
    lab = two
    with FaultProxy(lab.server.port) as proxy:
        make = create_async_engine if isinstance(lab, AsyncLab) else create_engine
        lab.engine = make(
            lab.url(proxy.port),
            pool_size=8,
            max_overflow=0,
            connect_args=lab.backend.connect_args(lab.driver),
        )
        lab.guard = protect(lab.engine, name="db")
        lab.all([lambda: lab.query("select pg_sleep(0.1)")] * 8)
        for _ in range(30 if busy else 1):
            assert write(lab)
        demote(lab.backend)
        with caplog.at_level(logging.WARNING, "guardrails"):
            end = time.monotonic() + 10
            while lab.guard.state == "closed" and time.monotonic() < end:
                try_to_write(lab)
        assert READ_ONLY in caplog.text
        assert lab.guard.snapshot().failure_cause == READ_ONLY
        move(proxy, lab.next.server.port)
        moved = time.monotonic()
        while not try_to_write(lab):
            assert time.monotonic() - moved < LIMIT, "no write yet"
            lab.pause(0.02)
        end = time.monotonic() + 10
        while lab.guard.state != "closed":
            try_to_write(lab)
            lab.pause(0.02)
            assert time.monotonic() < end, "the circuit stays open"
        assert lab.guard.snapshot().failure_cause is None
        assert all(try_to_write(lab) for _ in range(20)), "no connection to the old primary is left"
        lab.guard.detach()
        lab.dispose()


# --- work that asked to be read-only -------------------------------------------------------------


ASKING = {
    "SET TRANSACTION": ({}, lambda session: session.execute("set transaction read only")),
    "execution option": (
        {},
        lambda session: session.connection.execution_options(postgresql_readonly=True),
    ),
    "engine option": ({"execution_options": {"postgresql_readonly": True}}, None),
    "connect argument": ({"settings": {"default_transaction_read_only": "on"}}, None),
    "listener": ({"listener": "set session characteristics as transaction read only"}, None),
}


def make(lab, *, settings=None, listener=None, **options):
    """Builds an engine and its guard, with settings of the session."""
    arguments = dict(lab.backend.connect_args(lab.driver))
    if settings and lab.driver == "asyncpg":
        arguments["server_settings"] = {**arguments["server_settings"], **settings}
    elif settings and lab.driver == "pg8000":
        arguments["startup_params"] = settings
    elif settings:
        arguments["options"] = " ".join(f"-c {name}={value}" for name, value in settings.items())
    is_async = isinstance(lab, AsyncLab)
    lab.engine = (create_async_engine if is_async else create_engine)(
        lab.url(), pool_size=2, max_overflow=0, connect_args=arguments, **options
    )
    lab.guard = protect(lab.engine, name="db")
    if listener:

        @event.listens_for(lab.engine.sync_engine if is_async else lab.engine, "connect")
        def ask(connection, _):
            cursor = connection.cursor()
            cursor.execute(listener)
            cursor.close()
            connection.commit()

    return lab.guard


def refused_write(lab, first=None):
    """Tries to write in a transaction that begins with something; returns the session's process number."""
    numbers = []

    def insert(session):
        if first is not None:
            first(session)
        numbers.append(session.execute("select pg_backend_pid()"))
        session.execute("create table never (n int)")

    with pytest.raises(Exception, match="read-only transaction"):
        lab.run(insert)
    return numbers[0]


@on_postgres
@pytest.mark.parametrize("how", ASKING)
def test_transaction_that_asked_to_be_read_only_is_answered(lab, how):
    """The user's own wish is no failure of the server, and its connection stays."""
    options, first = ASKING[how]
    guard = make(lab, **options)
    number = refused_write(lab, first)
    assert (guard.snapshot().failed, guard.snapshot().failure_cause) == (0, None)
    assert refused_write(lab, first) == number


@on_postgres
@pytest.mark.parametrize("where", ["role {}", "database postgres", "role {} in database postgres"])
def test_read_only_role_or_database_is_answered(lab, where):
    """ALTER ROLE and ALTER DATABASE: the owner of the data has decided that."""
    lab.aside("select 1")
    role = lab.aside("select current_user")
    setting = where.format(role)
    lab.aside(f"alter {setting} set default_transaction_read_only = on")
    try:
        guard = make(lab)
        number = refused_write(lab)
        assert guard.snapshot().failed == 0
        assert refused_write(lab) == number
    finally:
        lab.aside(
            "set default_transaction_read_only = off", f"alter {setting} reset default_transaction_read_only"
        )


@pytest.mark.parametrize("driver", drivers("postgres"))
def test_standby_is_a_failure_unless_it_was_asked_for(driver):
    """A real server in recovery: a primary that became a standby, or one that a replica's engine asks for."""
    kind, name, is_async = DRIVERS[driver]
    with PostgresServer.start() as server:
        (server._data / "standby.signal").touch()
        server.restart()
        with (AsyncLab if is_async else SyncLab)(BACKENDS[kind](server), name) as lab:
            guard = lab.protect()
            refused_write(lab)
            assert (guard.snapshot().failed, guard.snapshot().failure_cause) == (1, READ_ONLY)
            guard.detach()
            lab.dispose()
            if name == "pg8000":
                return  # it cannot ask for one
            arguments = lab.backend.connect_args(name) | {"target_session_attrs": "prefer-standby"}
            lab.backend.connect_args = lambda _: arguments
            guard = lab.protect()
            refused_write(lab)
            assert (guard.snapshot().failed, guard.snapshot().failure_cause) == (0, None)
            guard.detach()


# --- the server ----------------------------------------------------------------------------------


@contextlib.contextmanager
def read_only_server(lab):
    """The server refuses writes for a while."""
    if isinstance(lab.backend, BACKENDS["postgres"]):
        lab.aside("alter system set default_transaction_read_only = on")
        lab.aside("select pg_reload_conf()")
        try:
            poll(lambda: lab.aside("show default_transaction_read_only") == "on", "the server has read it")
            yield
        finally:
            lab.aside("alter system reset default_transaction_read_only")
            lab.aside("select pg_reload_conf()")
            poll(lambda: lab.aside("show default_transaction_read_only") == "off", "the server has read it")
    else:
        lab.aside("set global read_only = 1")
        try:
            yield
        finally:
            lab.aside("set global read_only = 0")


def test_connection_to_a_read_only_server_is_dropped_on_its_return(lab):
    """The failed write is a failure; the next checkout connects anew; reads of the others go on."""
    guard = lab.protect(pool_size=3, max_overflow=0)
    lab.query("select 1")
    sessions = lab.server_side("true")
    with read_only_server(lab):

        def work(session):
            with pytest.raises(Exception, match=r"read.only"):
                session.execute("create table never (n int)")
            session.rollback()
            assert session.execute("select 42") == 42, "it is not taken away from its holder"

        lab.run(work)
        assert guard.snapshot().failed == 1
        assert guard.snapshot().failure_cause == READ_ONLY
        assert lab.pool.checkedout() == 0
        end = time.monotonic() + 5
        while lab.server_side("true") >= sessions:
            lab.pause(0.01)
            assert time.monotonic() < end, "the connection stays open"
    guard.detach()


def test_connection_opened_to_a_read_only_server_is_a_failure_too(lab):
    """The name still leads to the old primary: the server, not the user, has decided."""
    with read_only_server(lab):
        guard = lab.protect()
        with pytest.raises(Exception, match=r"read.only"):
            lab.query("create table never (n int)")
        assert guard.snapshot().failed == 1
        assert lab.query("select 42") == 42
    guard.detach()


@pytest.mark.parametrize("lab", ["psycopg", "pymysql"], indirect=True)
def test_failed_commit_of_a_read_only_server_is_a_failure(lab):
    """MariaDB lets an open transaction work on, and refuses its COMMIT."""
    guard = lab.protect(guard={"breaker": BreakerPolicy(is_failure=lambda error: False)})
    with read_only_server(lab):
        with pytest.raises(Exception, match=r"read.only"):
            lab.query("create table never (n int)")
        assert guard.snapshot().failed == 0, "the user's rule decides about the evidence"
        assert guard.snapshot().failure_cause == READ_ONLY
    guard.detach()


@pytest.mark.parametrize("lab", ["psycopg"], indirect=True)
def test_shadow_names_a_read_only_server_and_keeps_its_connections(lab):
    """The failure counts, and no connection is dropped."""
    guard = lab.protect(guard={"mode": "shadow"})
    number = lab.query("select pg_backend_pid()")
    with read_only_server(lab):
        with pytest.raises(Exception, match="read-only"):
            lab.query("create table never (n int)")
        assert (guard.snapshot().failed, guard.snapshot().failure_cause) == (1, READ_ONLY)
        assert lab.query("select pg_backend_pid()") == number
    guard.detach()


@pytest.mark.parametrize("lab", ["psycopg"], indirect=True)
def test_pool_is_renewed_in_a_spread(lab):
    """Idle connections that were opened before the write failed end within two seconds, not all at once."""
    guard = lab.protect(pool_size=8, max_overflow=0)
    lab.all([lambda: lab.query("select pg_sleep(0.1)")] * 8)
    assert lab.server_side("true") == 8
    with read_only_server(lab):
        with pytest.raises(Exception, match="read-only"):
            lab.query("create table never (n int)")
        seen = set()
        poll(lambda: seen.add(lab.server_side("true")) or 0 in seen, "all of them have ended")
    assert len(seen) >= 4, "they end one after the other"
    guard.detach()


# --- the login -----------------------------------------------------------------------------------


@contextlib.contextmanager
def server_with_password(kind):
    """Yields a private server's backend, and a function that sets the password of the role ``app``."""
    if kind == "postgres":
        with PostgresServer.start() as server:
            backend = BACKENDS[kind](server)
            with backend.connect() as connection:
                backend.run(connection, "create role app login password 'old'")
                (server._data / "pg_hba.conf").write_text(
                    "host all postgres 127.0.0.1/32 trust\nhost all app 127.0.0.1/32 scram-sha-256\n"
                )
                backend.run(connection, "select pg_reload_conf()")
                yield backend, lambda new: backend.run(connection, f"alter role app password '{new}'")
    else:
        with start_mariadb() as server:
            backend = BACKENDS[kind](server)
            with backend.connect() as connection:
                backend.run(connection, "create user app@'127.0.0.1' identified by 'old'")
                backend.run(connection, "grant all on guardrails.* to app@'127.0.0.1'")
                yield (
                    backend,
                    lambda new: backend.run(connection, f"alter user app@'127.0.0.1' identified by '{new}'"),
                )


@pytest.mark.parametrize("driver", drivers())
def test_rotated_password_is_named_and_the_new_one_works(driver):
    """Open connections stay, new ones fail, the circuit says why; the engine's do_connect has the new one."""
    kind, name, is_async = DRIVERS[driver]
    policy = BreakerPolicy(minimum_number_of_calls=3, wait_duration_in_open_state=0.2)
    with server_with_password(kind) as (backend, rotate), laboratory_of(is_async)(backend, name) as lab:
        url = lab.url().replace("postgres@", "app:old@").replace("lab@", "app:old@")
        lab.url = lambda: url
        guard = lab.protect(pool_size=3, max_overflow=0, guard={"breaker": policy})
        known = {"password": "old"}

        @event.listens_for(lab.engine.sync_engine if is_async else lab.engine, "do_connect")
        def credentials(dialect, record, words, arguments):
            arguments.update(known)

        assert lab.query("select 42") == 42
        rotate("new")
        assert lab.query("select 42") == 42, "the open connection stays"

        results = lab.all([lambda: lab.run(slow)] * 3)
        assert any(isinstance(each, Exception) for each in results)
        end = time.monotonic() + 5
        while guard.state == "closed" and time.monotonic() < end:
            lab.all([lambda: lab.run(slow)] * 3)
        assert guard.snapshot().failure_cause == "the server refuses the login"
        known["password"] = "new"
        end = time.monotonic() + 5
        while guard.state != "closed":
            lab.all([lambda: lab.run(slow)] * 3)
            lab.pause(0.02)
            assert time.monotonic() < end, "the circuit stays open"
        assert lab.all([lambda: lab.run(slow)] * 3) == [42] * 3
        guard.detach()


def laboratory_of(is_async):
    return AsyncLab if is_async else SyncLab


def slow(session):
    session.execute("select pg_sleep(0.05)")
    return session.execute("select 42")
