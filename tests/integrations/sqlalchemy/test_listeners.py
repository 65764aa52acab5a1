"""What runs on a connection below the hooks, in listeners and in SQLAlchemy's own errands, is bounded."""

from __future__ import annotations

import contextlib
import functools
import time

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.event.attr import _ListenerCollection

from guardrails import CallTimeoutError, CommitUnknownError, deadline
from guardrails.integrations.sqlalchemy import pool_status
from guardrails.testing.proxy import FaultProxy
from support.lateness import LATE
from support.sql_lab import in_threads, lab_with, on_loops, on_postgres, those

LIMIT = 0.4


@pytest.fixture
def wired(lab):
    """The lab, with its wire through a proxy that can be cut."""
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)
        lab.wire = wire
        yield lab
        wire.heal()
        lab.dispose()


def target(lab):
    """Where listeners are registered."""
    return getattr(lab.engine, "sync_engine", lab.engine)


def ask(connection):
    """A statement on the driver's connection, as a listener runs it."""
    cursor = connection.cursor()
    cursor.execute("select 1")
    cursor.fetchall()
    cursor.close()


@contextlib.contextmanager
def in_time(lab, times=1):
    """The block ends by its deadline, and nothing is out afterwards."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < times * (LIMIT + LATE)
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)


def well_again(lab):
    """The engine works when the wire does."""
    lab.wire.heal()
    assert lab.soon() == 42


def test_listener_of_a_checkout_is_bounded(wired):
    """A checkout listener that asks a silent server costs its caller one timeout."""
    wired.protect(guard={"timeout": LIMIT})
    asking = []
    event.listen(target(wired), "checkout", lambda connection, *_: asking and ask(connection))
    wired.connect()
    asking.append(True)
    wired.wire.hang()
    with in_time(wired), pytest.raises(CallTimeoutError):
        wired.query("select 1")
    assert wired.guard.snapshot().failed == 1
    asking.clear()
    well_again(wired)


@pytest.mark.parametrize("moment", ["reset", "checkin"])
@pytest.mark.parametrize("reset", [None, "rollback"])
def test_listener_of_a_return_is_bounded(wired, moment, reset):
    """A listener that asks a silent server while a connection is given back does not hold it for ever."""
    wired.protect(guard={"timeout": LIMIT}, pool_reset_on_return=reset)
    asking = []
    event.listen(target(wired), moment, lambda connection, *_: asking and connection and ask(connection))
    wired.connect()

    def work(session):
        session.execute("select 1")
        if reset is None:
            session.connection.commit()
        asking.append(True)
        wired.wire.hang()

    with in_time(wired, times=2), contextlib.suppress(CallTimeoutError):
        wired.run(work)
    assert wired.guard.snapshot().failed >= 1
    asking.clear()
    well_again(wired)


def test_listener_of_a_connect_is_bounded(wired):
    """A connect listener that asks a silent server costs its caller one timeout."""
    wired.protect(guard={"timeout": LIMIT})

    def silent(connection, _record):
        wired.wire.hang()
        ask(connection)

    wired.connect()
    event.listen(target(wired), "connect", silent)
    wired.dispose()
    with in_time(wired), pytest.raises(CallTimeoutError):
        wired.query("select 1")
    event.remove(target(wired), "connect", silent)
    well_again(wired)


@pytest.mark.parametrize("moment", ["before_cursor_execute", "after_cursor_execute"])
def test_listener_of_a_statement_is_bounded(wired, moment):
    """A listener that uses a statement's own cursor has the statement's time."""
    wired.protect(guard={"timeout": LIMIT})
    asking = []

    def listener(_connection, cursor, *_rest):
        if asking:
            wired.wire.hang()
            cursor.execute("select 1")

    wired.connect()
    event.listen(target(wired), moment, listener)
    wired.query("select 1")
    asking.append(True)
    with in_time(wired), pytest.raises(CallTimeoutError):
        wired.query("select 1")
    asking.clear()
    well_again(wired)


MOMENTS = {
    "begin": lambda user: user.exec_driver_sql("select 1"),
    "commit": lambda user: user.commit(),
    "rollback": lambda user: user.rollback(),
    "savepoint": lambda user: user.begin_nested(),
    "rollback_savepoint": lambda user: user.get_nested_transaction().rollback(),
    "release_savepoint": lambda user: user.get_nested_transaction().commit(),
    "before_execute": lambda user: user.execute(text("select 1")),
    "after_execute": lambda user: user.execute(text("select 1")),
    "set_connection_execution_options": lambda user: user.execution_options(mark=1),
}
"""What calls the listeners of an event."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_listener_of_a_transaction_is_bounded(wired, moment):
    """A listener that asks a silent server on the driver's connection costs its caller one timeout."""
    check_listener(wired, moment, "engine")


@pytest.mark.parametrize("lab", ["psycopg", "aiomysql"], indirect=True)
@pytest.mark.parametrize("where", ["class", "copy"])
def test_listener_of_all_engines_is_bounded(wired, where):
    """Whether it listens to the class of engines, or its engine is a copy with other options."""
    check_listener(wired, "commit", where)


def check_listener(wired, moment, where):
    """Registers a listener, calls it and sees it stopped."""
    wired.protect(guard={"timeout": LIMIT})
    asking = []

    def listener(user, *_rest):
        if asking:
            wired.wire.hang()
            ask(user.connection.dbapi_connection)

    registered = Engine if where == "class" else target(wired)
    event.listen(registered, moment, listener)
    bare = wired.engine
    if where == "copy":
        wired.engine = bare.execution_options(mark=1)

    def work(session):
        user = session.connection
        if moment != "begin":
            session.execute("select 1")
        if "_savepoint" in moment:
            user.begin_nested()
        asking.append(True)
        MOMENTS[moment](user)

    try:
        with in_time(wired, times=2), pytest.raises(CallTimeoutError) as caught:
            wired.run(work)
        assert not isinstance(caught.value, CommitUnknownError)  # no COMMIT was sent
        assert wired.guard.snapshot().failed == 1
    finally:
        asking.clear()
        event.remove(registered, moment, listener)
        Engine._has_events = False  # SQLAlchemy leaves it on, for every test after this one
        wired.engine = bare
    well_again(wired)


@pytest.mark.parametrize("lab", ["psycopg", "asyncpg"], indirect=True)
@pytest.mark.parametrize("moment", ["begin", "prepare", "commit", "rollback"])
def test_listener_of_a_two_phase_transaction_is_bounded(wired, moment):
    """Before each of its phases; none of them has been sent when the listener is stopped."""
    wired.protect(guard={"timeout": LIMIT})
    wired.connect()

    def listener(user, *_rest):
        wired.wire.hang()
        ask(user.connection.dbapi_connection)

    event.listen(target(wired), f"{moment}_twophase", listener)

    def work(session):
        transaction = session.connection.begin_twophase()
        session.execute("select 1")
        getattr(transaction, moment)()

    with in_time(wired, times=2), pytest.raises(CallTimeoutError) as caught:
        wired.run(work)
    assert not isinstance(caught.value, CommitUnknownError)
    event.remove(target(wired), f"{moment}_twophase", listener)
    well_again(wired)


def test_listener_of_a_checked_out_connection_is_bounded(wired):
    """A listener that queries a silent server at a checkout costs its caller one timeout."""
    wired.protect(guard={"timeout": LIMIT})
    asking = []

    def listener(user):
        if asking:
            wired.wire.hang()
            ask(user.connection.dbapi_connection)

    event.listen(target(wired), "engine_connect", listener)
    wired.connect()
    asking.append(True)
    with in_time(wired, times=2), pytest.raises(CallTimeoutError):
        wired.query("select 1")
    asking.clear()
    well_again(wired)


@on_postgres
def test_hooked_work_of_a_listener_has_its_own_time(lab):
    """A statement with a longer limit in a listener has that; what follows it is bounded again."""
    lab.protect(guard={"timeout": LIMIT})
    asking = []

    def listener(user):
        if asking:
            slow, longer = f"select 7 from pg_sleep({2 * LIMIT})", {"guardrails_timeout": 5}
            assert user.execute(text(slow), execution_options=longer).scalar() == 7
            proxy = user.connection
            proxy.guardrails_timeout = 5
            cursor = proxy.cursor()
            cursor.execute(slow)
            cursor.close()
            asking.append("came so far")
            cursor = proxy.dbapi_connection.cursor()
            cursor.execute("select pg_sleep(20)")

    event.listen(target(lab), "commit", listener)

    def work(session):
        session.execute("select 1")
        asking.append(True)
        session.commit()

    with in_time(lab, times=8), pytest.raises(CallTimeoutError):
        lab.run(work)
    assert asking == [True, "came so far"]
    assert lab.guard.snapshot().failed == 1


def test_listeners_of_transactions_are_called_as_before(lab):
    """With their arguments, in their order, and their errors are theirs; after `detach()` as ever."""
    lab.protect()
    seen = []
    event.listen(target(lab), "commit", lambda user: seen.append(("first", user.in_transaction())))
    event.listen(target(lab), "commit", lambda conn: seen.append(("named", conn.closed)), named=True)

    def replace(_user, _clause, many, parameters, _options):
        return text("select 5"), many, parameters

    event.listen(target(lab), "before_execute", replace, retval=True)

    def work(session):
        result = session.execute("select 1")
        session.commit()
        return result

    assert lab.run(work) == 5
    assert seen == [("first", True), ("named", False)]
    seen.clear()

    def refuse(_user):
        raise ValueError("no")

    event.listen(target(lab), "commit", refuse)
    with pytest.raises(ValueError, match="no"):
        lab.run(work)
    event.remove(target(lab), "commit", refuse)
    lab.guard.detach()
    assert lab.run(work) == 5
    assert len(seen) == 4
    assert type(target(lab).dispatch.commit) is _ListenerCollection


def test_listener_that_executes_instead_of_the_dialect_is_bounded(wired):
    """A do_execute listener that runs the statement itself has the statement's time."""
    wired.protect(guard={"timeout": 5})
    asking = []

    def do_execute(cursor, statement, parameters, _context):
        if asking:
            wired.wire.hang()
        cursor.execute(statement, parameters)
        return True

    event.listen(target(wired), "do_execute", do_execute)
    assert wired.query("select 7") == 7
    asking.append(True)
    with in_time(wired), pytest.raises(CallTimeoutError):
        wired.query("select 1", timeout=LIMIT)
    asking.clear()
    well_again(wired)


def test_listeners_in_time_cost_nothing(wired):
    """A transaction that lasts longer than the timeout, with listeners around its statements, goes on."""
    wired.protect(guard={"timeout": LIMIT})
    event.listen(
        target(wired), "before_cursor_execute", lambda _connection, cursor, *_: cursor.execute("select 1")
    )

    def work(session):
        first = session.execute("select pg_backend_pid()")
        time.sleep(LIMIT + 0.3)
        second = session.execute("select pg_backend_pid()")
        time.sleep(LIMIT + 0.3)
        return first == second

    assert wired.run(work)
    assert wired.guard.snapshot().failed == 0
    assert wired.pool.checkedin() == 1


def test_isolation_level_is_asked_for_in_time(wired):
    """Connection.get_isolation_level() asks the server, for no longer than a statement may."""
    wired.protect(guard={"timeout": LIMIT})
    wired.connect()

    def work(session):
        session.execute("select 1")
        wired.wire.hang()
        with pytest.raises(CallTimeoutError):
            session.connection.get_isolation_level()

    with in_time(wired, times=2):
        wired.run(work)
    well_again(wired)


@those("pymysql", "mysqldb", "aiomysql", "asyncmy", "pg8000")
@pytest.mark.parametrize("where", ["engine", "connection"])
def test_isolation_level_is_set_in_time(wired, where):
    """Setting the isolation level of an engine's or a connection's checkouts asks the server, too."""
    wired.protect(guard={"timeout": LIMIT})
    wired.connect()
    bare = wired.engine
    if where == "engine":
        wired.engine = bare.execution_options(isolation_level="AUTOCOMMIT")
    assert wired.query("select 1") == 1
    wired.wire.hang()
    with in_time(wired, times=2), pytest.raises(CallTimeoutError):
        wired.run(lambda session: session.connection.execution_options(isolation_level="AUTOCOMMIT"))
    wired.engine = bare
    well_again(wired)


@those("pymysql", "mysqldb", "aiomysql", "asyncmy", "pg8000")
def test_isolation_level_is_reset_in_time(wired):
    """Taking an isolation level back on return is bounded, and its connection does not stay out."""
    wired.protect(guard={"timeout": LIMIT})

    def work(session):
        session.connection.execution_options(isolation_level="SERIALIZABLE")
        session.connection.exec_driver_sql("select 1")
        session.connection.rollback()
        wired.wire.hang()

    with in_time(wired, times=2), contextlib.suppress(CallTimeoutError):
        wired.run(work)
    well_again(wired)


@in_threads
def test_dbapi_connection_inside_a_deadline_is_stopped(lab):
    """Work on the DBAPI connection inside a deadline is stopped at the deadline."""
    lab.protect(guard={"timeout": 20})
    lab.query("select 1")
    start = time.monotonic()
    with (
        deadline(LIMIT),
        pytest.raises(lab.engine.dialect.dbapi.Error),
        contextlib.closing(lab.engine.raw_connection()) as raw,
    ):
        raw.dbapi_connection.cursor().execute(lab.backend.say("select pg_sleep(30)"))
    assert time.monotonic() - start < LIMIT + LATE
    assert lab.query("select 42") == 42
    assert lab.guard.snapshot().failed == 0


def test_dbapi_connection_of_a_kept_deadline_is_kept(lab):
    """One that is back in time is used again; without a deadline nothing is armed."""
    lab.protect()

    def work(session):
        assert session.connection.connection.dbapi_connection is not None
        return session.execute("select pg_backend_pid()")

    with deadline(5):
        first = lab.run(work)
    assert lab.run(work) == first


@on_postgres
def test_status_of_a_hanging_listener_is_a_call(wired):
    """A connection on which a listener waits is in a statement: its code does not do something else."""
    wired.protect(guard={"timeout": 1.5}, pool_size=1, max_overflow=0)
    seen, asking = [], []

    def checkout(connection, *_):
        if asking:
            seen.append(pool_status(wired.engine))
            ask(connection)

    event.listen(target(wired), "checkout", checkout)
    wired.connect()
    asking.append(True)
    wired.query("select 1")
    assert seen[0].holders[0].doing == "statement"
    assert seen[0].cause == "busy"


dropping_lab = lab_with(["psycopg", "pymysql"])


def test_listener_of_a_dropped_connection_is_bounded(dropping_lab):
    """The collector gives a connection back through the same listeners, and waits no longer than others."""
    lab = dropping_lab
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)
        lab.protect(guard={"timeout": LIMIT}, pool_reset_on_return=None)
        asking = []
        event.listen(lab.engine, "reset", lambda connection, *_: asking and ask(connection))
        connection = lab.engine.connect()
        connection.execute(text("select 1"))
        connection.commit()
        asking.append(True)
        wire.hang()
        start = time.monotonic()
        del connection
        assert time.monotonic() - start < LIMIT + LATE
        assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
        asking.clear()
        wire.heal()
        assert lab.query("select 42") == 42
        lab.dispose()


@on_loops
def test_raising_listener_of_a_checkin_loses_no_connection(lab):
    """A listener that raises while a connection is given back costs that connection, and no slot."""
    lab.protect(pool_size=1, max_overflow=0)

    def refuse(*_):
        raise ValueError("no")

    event.listen(target(lab), "checkin", refuse)
    with pytest.raises(ValueError, match="no"):
        lab.query("select 1")
    event.remove(target(lab), "checkin", refuse)
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    assert lab.query("select 42") == 42
