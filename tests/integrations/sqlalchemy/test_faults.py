"""Whatever the network or the server does to a call, it is back in time and costs its own connection only."""

from __future__ import annotations

import contextlib
import functools
import threading
import time

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, event, insert, text
from sqlalchemy.exc import DBAPIError

from guardrails import CallTimeoutError, CommitUnknownError, RejectedError, deadline
from guardrails.testing.proxy import FaultProxy
from support.lateness import LATE
from support.polling import poll
from support.sql_lab import in_threads

LIMIT = 0.3

NUMBERS = Table("numbers", MetaData(), Column("n", Integer))
BIG = "select repeat('x', 4000000)"


@pytest.fixture
def wire(lab):
    """A proxy between the lab's engine and its server."""
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)
        yield wire
        wire.heal()
        # Inside the proxy's life: what the engine closes must still reach the server.
        lab.dispose()


@pytest.fixture
def numbers(lab):
    """An empty table of numbers."""
    lab.aside("create table numbers (n int)")
    yield "numbers"
    # Not before the statements that were left alone with it have ended.
    poll(lambda: lab.running() == 0, "nothing of the test runs on the server", 10)
    lab.aside("drop table numbers")


@contextlib.contextmanager
def stopped(lab, error=CallTimeoutError, limit=LIMIT):
    """The block raises a timeout by the limit and a grace."""
    start = time.monotonic()
    with pytest.raises(error) as caught:
        yield caught
    assert time.monotonic() - start < limit + LATE
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)


def warm(lab, **options):
    """A guarded engine with two idle connections."""
    lab.protect(guard={"timeout": LIMIT}, **options)
    lab.idle = sessions(lab)


def sessions(lab):
    """The server's processes behind the pool's first two connections."""
    both = set()

    def know_both():
        # Time enough for a statement; opening a connection has the guard's, which a busy machine may miss.
        both.clear()
        both.update(lab.all([lambda: lab.query("select pg_backend_pid() from pg_sleep(0.1)", timeout=5)] * 2))
        return len(both) == 2 and all(isinstance(pid, int) for pid in both)

    poll(know_both, "two connections are open", 10)
    return both


def well(lab, lost=1):
    """So many connections were lost and no other; the next answers are right."""
    assert len(lab.idle - sessions(lab)) == lost
    assert lab.all([lambda n=n: lab.query(f"select {n}") for n in range(3)]) == [0, 1, 2]


@pytest.mark.parametrize("towards", ["client", "server", "both"])
def test_silence_in_the_middle_of_a_statement(lab, wire, towards):
    """Packets that stop coming, either way, do not hold the caller."""
    warm(lab)
    wire.hang(towards=towards)
    with stopped(lab):
        lab.query("select pg_sleep(0.05)")
    wire.heal()
    well(lab)


def test_answer_that_dribbles(lab, wire):
    """A byte now and then keeps every socket timeout happy; the deadline is for the whole answer."""
    warm(lab)
    wire.slice(2000, every=0.01)
    with stopped(lab):
        lab.query(BIG)
    wire.heal()
    well(lab)


def test_silence_in_the_middle_of_an_answer(lab, wire):
    """Half an answer is no answer."""
    warm(lab)
    wire.slice(100_000, every=0.02)
    hanging = threading.Timer(LIMIT / 2, wire.hang)
    hanging.start()
    with stopped(lab):
        lab.query(BIG)
    hanging.join()
    wire.heal()
    well(lab)


def test_late_packets(lab, wire):
    """A slow network is a slow server."""
    warm(lab)
    wire.delay(LIMIT)
    with stopped(lab):
        lab.query("select 1")
    wire.heal()
    well(lab)


@pytest.mark.parametrize("fault", ["hang", "delay", "slice"])
def test_connecting_over_a_bad_wire(lab, wire, fault):
    """Opening a connection has the deadline of the call that needs it, wherever it gets stuck."""
    lab.protect(guard={"timeout": LIMIT})
    {"hang": wire.hang, "delay": lambda: wire.delay(0.25), "slice": lambda: wire.slice(9, every=0.05)}[
        fault
    ]()
    with stopped(lab):
        lab.query("select 1")
    wire.heal()
    assert lab.soon() == 42


@pytest.mark.parametrize("again", [False, True], ids=["first", "opened_again"])
def test_what_a_listener_asks_of_a_new_connection_is_bounded(lab, wire, again):
    """Neither SQLAlchemy's hooks nor ours see it; it ends in time all the same, and nothing is left."""
    lab.protect(guard={"timeout": LIMIT})
    asked, hanging = [], [not again]

    @event.listens_for(getattr(lab.engine, "sync_engine", lab.engine), "connect")
    def ask(connection, record):
        cursor = connection.cursor()
        if any(hanging):
            wire.hang("client")
            asked.append(1)
        cursor.execute("select 1")
        cursor.close()

    if again:
        assert lab.soon() == 42
        lab.dispose()
        hanging.append(True)
    with stopped(lab):
        lab.query("select 1")
    assert len(asked) == 1
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    event.remove(getattr(lab.engine, "sync_engine", lab.engine), "connect", ask)
    wire.heal()
    assert lab.soon() == 42


def test_silence_anywhere_in_a_first_call(lab, wire):
    """Handshake, what SQLAlchemy and the driver ask a new connection, the statement: each may get stuck."""
    lab.protect(guard={"timeout": 20})
    lab.query("select 1")
    whole = wire.sent_to_client
    for share in range(6):
        lab.dispose()
        lab.protect(guard={"timeout": LIMIT})
        wire.hang_after(1 + whole * share // 6)
        start = time.monotonic()
        with pytest.raises(CallTimeoutError):
            lab.query("select 1")
        assert time.monotonic() - start < 2 * LIMIT + LATE  # opened and asked: two pieces of work
        assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
        wire.heal()
        assert lab.soon("select 42") == 42


def test_silence_in_commit(lab, wire, numbers):
    """A COMMIT without an answer raises CommitUnknownError: it may have happened."""
    warm(lab)

    def work(session):
        session.execute("insert into numbers values (1)")
        wire.hang(towards="client")
        session.commit()

    with stopped(lab, CommitUnknownError):
        lab.run(work)
    wire.heal()
    well(lab)
    # This one has: the server heard the COMMIT, and only its answer was lost. Before pg8000 sends it,
    # it waits for the answer to its preparation.
    assert lab.query("select count(*) from numbers") == (0 if lab.driver == "pg8000" else 1)


@pytest.mark.parametrize("how", ["rollback", "close"])
def test_silence_in_rollback(lab, wire, how):
    """Neither a ROLLBACK nor the closing of a connection waits for a server that is silent."""
    warm(lab)

    def work(session):
        session.execute("select 1")
        wire.hang()
        if how == "rollback":
            session.rollback()

    with stopped(lab):
        lab.run(work)
    wire.heal()
    well(lab)


def test_silence_in_pre_ping(lab, wire):
    """A connection that does not answer a ping is not handed out, and the caller does not wait for it."""
    warm(lab, pool_pre_ping=True)
    wire.hang()
    with stopped(lab):
        lab.query("select 1")
    wire.heal()
    well(lab)


@pytest.mark.parametrize("step", ["savepoint", "release", "rollback to"])
def test_silence_at_a_savepoint(lab, wire, step):
    """Savepoints are statements like any other."""
    warm(lab)

    def work(session):
        session.execute("select 1")
        if step == "savepoint":
            wire.hang()
        savepoint = session.connection.begin_nested()
        wire.hang()
        savepoint.commit() if step == "release" else savepoint.rollback()

    with stopped(lab):
        lab.run(work)
    wire.heal()
    well(lab)


@pytest.mark.parametrize("how", ["executemany", "insertmanyvalues"])
def test_silence_in_bulk_inserts(lab, wire, numbers, how):
    """Many rows in one call are stopped like one."""
    warm(lab)
    rows = [{"n": n} for n in range(300)]  # few enough for a busy machine to put together in time
    statement = text("insert into numbers values (:n)")
    if how == "insertmanyvalues":
        statement = insert(NUMBERS).returning(NUMBERS.c.n)

    def work(session):
        session.execute("select 1")
        wire.hang(towards="client")
        session.connection.execute(statement, rows)

    with stopped(lab):
        lab.run(work)
    wire.heal()
    well(lab)
    assert lab.query("select count(*) from numbers") == 0


@pytest.mark.parametrize("fault", ["reset", "cut", "half_close"])
def test_a_lost_connection_is_reported_at_once(lab, wire, fault):
    """A connection that breaks in the middle of an answer is the driver's error, not a wait."""
    warm(lab)

    def break_it():
        if fault != "cut":
            poll(lambda: lab.running() == 1, "the statement runs")
            getattr(wire, fault)()

    failed = lab.guard.snapshot().failed
    if fault == "cut":
        wire.cut_after(100_000)
    breaking = threading.Thread(target=break_it)
    breaking.start()
    start = time.monotonic()
    with pytest.raises((DBAPIError, OSError)) as caught:
        lab.query(BIG if fault == "cut" else "select pg_sleep(3)", timeout=20)
    breaking.join()
    assert time.monotonic() - start < 2.5 or fault == "cut"
    # pg8000 raises what its socket raises.
    assert (
        lab.driver == "pg8000" if isinstance(caught.value, OSError) else caught.value.connection_invalidated
    )
    snapshot = lab.guard.snapshot()
    assert (snapshot.failed - failed, snapshot.in_use, lab.pool.checkedout()) == (1, 0, 0)
    poll(lambda: lab.query("select 42") == 42, "the engine is well again")


def test_refused_connections_are_reported_at_once(lab, wire):
    """A server that is gone is evidence, and no wait."""
    lab.protect()
    wire.refuse()
    with pytest.raises((DBAPIError, OSError)):
        lab.query("select 1")
    assert lab.guard.snapshot().failed == 1
    wire.heal()
    assert lab.query("select 42") == 42


def test_session_ended_by_an_administrator(lab):
    """Who is thrown out in the middle of a statement hears so at once."""
    lab.protect(guard={"timeout": 20.0})
    pid = {}

    def work(session):
        pid["at"] = session.execute("select pg_backend_pid()")
        return session.execute("select pg_sleep(30)")

    with lab.meanwhile(lambda: lab.run(work)) as results:
        for _ in range(500):
            lab.pause(0.01)
            if pid and lab.running():
                break
        lab.aside(lab.backend.say(f"select pg_terminate_backend({pid['at']})"))
        start = time.monotonic()
    assert time.monotonic() - start < 5
    assert isinstance(results[0], Exception)
    assert not isinstance(results[0], CallTimeoutError)
    assert lab.query("select 42") == 42
    assert (lab.guard.snapshot().failed, lab.guard.snapshot().in_use) == (1, 0)


@in_threads  # SQLAlchemy only drops a forgotten connection of an AsyncEngine
def test_frozen_server_and_a_forgotten_connection(lab):
    """The collector rolls back an unclosed connection; on a frozen server in the time of a call."""
    warm(lab)
    forgotten = lab.engine.raw_connection()
    forgotten.cursor().execute("select 1")
    with lab.frozen():
        start = time.monotonic()
        del forgotten  # nobody else has it, so this is when it is collected
        assert time.monotonic() - start < LIMIT + LATE
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    well(lab)


def test_a_deadline_that_ends_while_connecting_is_no_failure(lab, wire):
    """A deadline that passes while the connection is opened ends the call, and is no failure."""
    lab.protect()
    wire.hang()
    with stopped(lab, (CallTimeoutError, RejectedError)), deadline(LIMIT):
        lab.query("select 1")
    assert lab.guard.snapshot().failed == 0


def test_statement_ends_on_a_server_that_can_be_reached(lab, wire):
    """When only the answers are lost the order to stop still arrives, or the server ends the statement."""
    lab.skip_on_mysql("has no max_statement_time, and the KILL needs a login, whose answers are lost, too")
    warm(lab)
    wire.hang(towards="client")
    with stopped(lab):
        lab.query("select pg_sleep(30)")
    poll(lambda: lab.running() == 0, "the statement has ended on the server", 1.0 + LATE)
    wire.heal()
    well(lab)


def test_protection_costs_no_round_trip(lab, wire):
    """A guarded engine sends the server exactly what a bare one sends."""

    def turns():
        before = (wire.turns, wire.sent_to_server)

        def work(session):
            session.execute("select 1")
            session.commit()
            session.execute("select 2", timeout=5) if lab.guard else session.execute("select 2")

        for _ in range(3):
            lab.run(work)
        return (wire.turns - before[0], wire.sent_to_server - before[1])

    lab.engine = lab.make_engine()
    turns()
    bare = turns()
    lab.dispose()
    lab.protect()
    turns()
    guarded = turns()
    assert guarded[0] == bare[0]
    # asyncpg counts its statements in hexadecimal through the whole process: a name may be a letter longer.
    room = 12 if lab.driver == "asyncpg" else 0
    assert abs(guarded[1] - bare[1]) <= room
