"""A server frozen in phases past plain statements: two-phase commit, listeners, levels, a foreign pool."""

from __future__ import annotations

import contextlib
import time
from uuid import uuid4

import pytest
from sqlalchemy import event, text

from guardrails import CallTimeoutError, CommitUnknownError, deadline
from support.foreign_pool import foreign_pool
from support.lateness import LATE
from support.prepared import names_of_prepared, tidy
from support.sql_lab import those

LIMIT = 0.3


def target(lab):
    """Where listeners are registered."""
    return getattr(lab.engine, "sync_engine", lab.engine)


def ask(connection):
    """A statement on the driver's connection, as a listener runs it."""
    cursor = connection.cursor()
    cursor.execute("select 1")
    cursor.fetchall()
    cursor.close()


def begin(connection):
    """A two-phase transaction that has done something."""
    transaction = connection.begin_twophase(uuid4().hex)
    connection.execute(text("insert into frozen values (1)"))
    return transaction


def prepared(connection):
    """One that is prepared."""
    transaction = begin(connection)
    transaction.prepare()
    return transaction


def at_begin(connection, freeze):
    freeze()
    begin(connection)


def at_prepare(connection, freeze):
    transaction = begin(connection)
    freeze()
    transaction.prepare()


def at_commit(connection, freeze):
    transaction = prepared(connection)
    freeze()
    transaction.commit()


def at_rollback(connection, freeze):
    transaction = prepared(connection)
    freeze()
    transaction.rollback()


def at_recover(connection, freeze):
    freeze()
    connection.recover_twophase()


def at_get_isolation_level(connection, freeze):
    connection.execute(text("select 1"))
    freeze()
    connection.get_isolation_level()


def at_statement_of_a_level(connection, freeze):
    connection.execution_options(isolation_level="SERIALIZABLE")
    freeze()
    connection.execute(text("select 1"))


def at_commit_of_a_level(connection, freeze):
    connection.execution_options(isolation_level="SERIALIZABLE")
    connection.execute(text("insert into frozen values (1)"))
    freeze()
    connection.commit()


PHASES = [
    (at_begin, CallTimeoutError),
    (at_prepare, CallTimeoutError),
    (at_commit, CommitUnknownError),
    (at_rollback, CallTimeoutError),
    (at_recover, CallTimeoutError),
    (at_get_isolation_level, CallTimeoutError),
    (at_statement_of_a_level, CallTimeoutError),
    (at_commit_of_a_level, CommitUnknownError),
]


@pytest.fixture
def frozen(lab):
    """The lab, with a table; afterwards nothing of it is left, not even prepared."""
    lab.aside("drop table if exists frozen", "create table frozen (n int)")
    yield lab
    lab.server.thaw()
    lab.dispose()
    lab.until(lambda: lab.server_side("true") == 0, "the test's connections are gone from the server")
    tidy(lab)
    lab.aside("drop table frozen")


class Freezing:
    """Freezes the server when it is called, and knows since when."""

    def __init__(self, lab):
        self.lab = lab
        self.at = None

    def __call__(self):
        self.lab.server.freeze()
        self.at = time.monotonic()

    def ends(self, times):
        """What was called is back in time, without slot and connection; after the thaw all is well."""
        assert time.monotonic() - self.at < times * (LIMIT + LATE)
        assert self.lab.guard.snapshot().in_use == 0
        assert self.lab.guard.snapshot().failed >= 1
        self.lab.server.thaw()
        assert self.lab.soon() == 42


def warm(lab, **options):
    """A guarded engine with a connection."""
    lab.protect(guard={"timeout": LIMIT, "breaker": None}, pool_size=1, max_overflow=0, **options)
    assert lab.soon() == 42


@pytest.mark.parametrize(("phase", "error"), PHASES, ids=lambda it: it.__name__)
def test_phase_on_a_frozen_server_ends(frozen, phase, error):
    """Each phase ends by its deadline; what may have been committed is called so, and nothing else is."""
    warm(frozen)
    freeze = Freezing(frozen)

    def work(session):
        with pytest.raises(CallTimeoutError) as caught:
            phase(session.connection, freeze)
        assert type(caught.value) is error

    frozen.run(work)
    assert frozen.pool.checkedout() == 0
    freeze.ends(times=2)
    if phase is at_begin:
        assert not names_of_prepared(frozen)
    if error is CallTimeoutError:
        assert frozen.query("select count(*) from frozen", timeout=5) == 0


@pytest.mark.parametrize("moment", ["connect", "checkout", "reset", "checkin"])
def test_listener_on_a_frozen_server_ends(frozen, moment):
    """A listener that asks a frozen server costs its caller one timeout, at each end of a checkout."""
    warm(frozen)
    freeze, asking = Freezing(frozen), [True]

    def listen(connection, *_):
        if asking and connection is not None:
            asking.clear()
            freeze()
            ask(connection)

    if moment == "connect":
        frozen.dispose()
    event.listen(target(frozen), moment, listen)
    if moment in {"connect", "checkout"}:
        with pytest.raises(CallTimeoutError):
            frozen.query("select 1")
    else:
        # SQLAlchemy logs what a listener raises at a check-in and goes on, or raises it.
        with contextlib.suppress(CallTimeoutError):
            frozen.query("select 1", timeout=5)
    assert frozen.pool.checkedout() == 0
    freeze.ends(times=2)


@those("pymysql", "mysqldb", "aiomysql", "asyncmy", "pg8000")
@pytest.mark.parametrize("end", ["set", "reset"])
def test_isolation_level_on_a_frozen_server_ends(frozen, end):
    """Where an isolation level is a statement, setting it and taking it back on return are bounded."""
    warm(frozen)
    freeze = Freezing(frozen)

    def work(session):
        if end == "set":
            freeze()
        session.connection.execution_options(isolation_level="SERIALIZABLE")
        session.execute("select 1")
        session.rollback()
        freeze()

    with contextlib.suppress(CallTimeoutError):
        frozen.run(work)
    assert frozen.pool.checkedout() == 0
    freeze.ends(times=2)


@those("psycopg", "psycopg2", "pg8000", "pymysql", "mysqldb")
def test_dbapi_connection_on_a_frozen_server_ends(frozen):
    """Work on the driver's own connection inside a deadline ends with it."""
    warm(frozen)
    freeze = Freezing(frozen)
    raw = frozen.engine.raw_connection()
    with deadline(LIMIT), pytest.raises(frozen.engine.dialect.dbapi.Error), contextlib.closing(raw):
        cursor = raw.dbapi_connection.cursor()
        freeze()
        cursor.execute("select 1")
    assert time.monotonic() - freeze.at < LIMIT + LATE
    frozen.server.thaw()
    assert frozen.soon() == 42
    assert (frozen.pool.checkedout(), frozen.guard.snapshot().in_use) == (0, 0)


@pytest.mark.parametrize("lab", ["psycopg", "psycopg_async"], indirect=True)
@pytest.mark.parametrize("phase", ["statement", "commit", "rollback", "return"])
def test_foreign_pool_on_a_frozen_server_ends(frozen, phase):
    """A connection that a psycopg_pool owns is stopped like another, and its pool gets it back closed."""
    with foreign_pool(frozen) as pool:
        frozen.engine = frozen.make_engine()
        frozen.guard = frozen.guard_engine(timeout=LIMIT)
        freeze = Freezing(frozen)

        def work(session):
            session.execute("insert into frozen values (1)")
            freeze()
            if phase == "statement":
                session.execute("select 1")
            elif phase != "return":
                getattr(session, phase)()

        with pytest.raises(CommitUnknownError if phase == "commit" else CallTimeoutError):
            frozen.run(work)
        freeze.ends(times=2)
        assert pool.get_stats().get("returns_bad") == 1
        if phase != "commit":
            assert frozen.query("select count(*) from frozen", timeout=5) == 0
