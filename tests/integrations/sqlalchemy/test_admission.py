"""Every kind of checkout takes a slot, and each slot comes back exactly once."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import warnings
import weakref

import pytest
from sqlalchemy import NullPool, StaticPool, create_engine, text
from sqlalchemy.exc import InterfaceError, OperationalError, SAWarning
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session as OrmSession

from guardrails import (
    BreakerPolicy,
    BulkheadFullError,
    CircuitOpenError,
    ConfigurationError,
    guarded,
    protect,
)
from guardrails.events import StateChanged
from support.polling import poll


def test_slots_are_the_pools_capacity(lab):
    """By default the guard has as many slots as the pool has connections."""
    assert lab.protect(pool_size=2, max_overflow=1).snapshot().max_concurrent_calls == 3


@pytest.mark.every_driver
def test_exhausted_pool_refuses_at_once(lab):
    """With every connection out a checkout is refused within its short wait, not after thirty seconds."""
    lab.protect(pool_size=1, max_overflow=1)
    with lab.meanwhile(lambda: lab.query("select pg_sleep(0.8)"), count=2):
        poll(lambda: lab.pause(0.01) or lab.running() == 2, "both statements run")
        with pytest.raises(BulkheadFullError) as caught:
            lab.query("select 1")
        assert lab.pool.checkedout() == 2
        assert caught.value.reason == "queue_timeout"
    assert lab.guard.snapshot().in_use == 0
    assert lab.query("select 1") == 1


def test_short_burst_is_served(lab):
    """Callers who find the pool full for a moment wait their turn and are served."""
    lab.protect(pool_size=2, max_overflow=0, guard={"max_wait_duration": 5.0, "max_waiting": 20})
    assert lab.all([lambda: lab.query("select 1 from pg_sleep(0.02)")] * 12) == [1] * 12
    assert lab.guard.snapshot().rejected == {}


def test_queue_is_bounded(lab):
    """More callers than may wait are refused without waiting."""
    lab.protect(pool_size=1, max_overflow=0, guard={"max_wait_duration": 5.0, "max_waiting": 1})
    with lab.meanwhile(lambda: lab.query("select pg_sleep(0.3)")):
        lab.pause(0.1)
        answers = lab.all([lambda: lab.query("select 1")] * 4)
    assert [a for a in answers if a == 1] == [1]
    assert {getattr(a, "reason", None) for a in answers if a != 1} == {"bulkhead_full"}


def test_dispose_keeps_the_guard(lab):
    """After engine.dispose() the new pool is guarded as the old one was."""
    lab.protect(pool_size=1, max_overflow=0)
    lab.query("select 1")
    dispose(lab)
    with lab.meanwhile(lambda: lab.query("select pg_sleep(0.5)")):
        lab.pause(0.2)
        with pytest.raises(BulkheadFullError):
            lab.query("select 1")


def test_connections_that_are_out_at_a_dispose_are_closed_when_they_are_returned(lab):
    """They return to the disposed pool, which nothing keeps; a later detach finds the new pool's listener."""
    guard = lab.protect(pool_size=2, max_overflow=0)
    with lab.meanwhile(lambda: lab.query("select pg_sleep(0.5)"), count=2) as answers:
        lab.until(lambda: guard.snapshot().pool.in_use == 2, "both are out")
        disposed = weakref.ref(lab.pool)
        dispose(lab)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    seen = guard.snapshot().pool
    assert (seen.open, seen.opened, seen.closed) == (0, 2, 2)
    lab.until(lambda: lab.server_side("true") == 0, "both are closed on the server")
    gc.collect()
    assert disposed() is None
    assert lab.query("select 1") == 1
    assert guard.snapshot().pool.open == 1
    guard.detach()
    assert not lab.pool.dispatch.invalidate.listeners


def dispose(lab):
    """Disposes of the engine's pool; the lab goes on."""
    if hasattr(lab, "runner"):
        lab.runner.run(lab.engine.dispose())
    else:
        lab.engine.dispose()


def test_detach_undoes_everything(lab):
    """After guard.detach() the engine is as it was; it may be guarded anew."""
    guard = lab.protect()
    lab.query("select 1")
    guard.detach()
    dialect = getattr(lab.engine, "sync_engine", lab.engine).dialect
    assert "do_execute" not in vars(dialect)
    assert not type(lab.pool).__name__.startswith("Guarded")
    before = guard.snapshot()
    assert lab.query("select 1") == 1
    assert guard.snapshot() == before
    with pytest.raises(ConfigurationError, match="not attached"):
        guard.detach()
    again = protect(lab.engine)
    assert lab.query("select 1") == 1
    assert again.snapshot().admitted == 1


def test_connections_out_before_the_guard_are_counted(lab):
    """What was checked out when the guard came holds a slot until it returns."""
    lab.engine = lab.make_engine(pool_size=1, max_overflow=1)
    with lab.meanwhile(lambda: lab.query("select pg_sleep(0.5)")):
        lab.pause(0.2)
        guard = protect(lab.engine, name="late")
        assert guard.snapshot().in_use == 1
    assert guard.snapshot().in_use == 0
    assert lab.query("select 1") == 1
    assert guard.snapshot().in_use == 0


def test_detaching_with_connections_out_loses_no_slot(lab):
    """A connection that outlives one guard and returns under the next gives back the next one's slot."""
    first = lab.protect(pool_size=1, max_overflow=1)
    with lab.meanwhile(lambda: lab.query("select pg_sleep(0.5)")):
        lab.pause(0.2)
        first.detach()
        second = protect(lab.engine, name="second")
        assert second.snapshot().in_use == 1
    assert (first.snapshot().in_use, second.snapshot().in_use) == (0, 0)


# SQLAlchemy leaves a detached psycopg connection of an AsyncEngine to the collector, guarded or not.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_invalidated_and_detached_connections_give_their_slot_back(lab):
    """invalidate() and detach() end a checkout for the pool, and so for the guard."""
    lab.protect()
    lab.run(lambda session: session.connection.invalidate())
    assert lab.guard.snapshot().in_use == 0

    def take_away(session):
        session.execute("select 1")
        session.connection.detach()
        assert lab.guard.snapshot().in_use == 0

    lab.run(take_away)
    gc.collect()
    assert lab.guard.snapshot().in_use == 0
    assert lab.query("select 1") == 1


def test_refused_connect_gives_the_slot_back_and_is_a_failure(lab):
    """A server that is not there costs no slot, and is evidence."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = lab.url(port=nobody.getsockname()[1])
        lab.engine = create_async_engine(url) if hasattr(lab, "runner") else create_engine(url)
        lab.guard = protect(lab.engine, name="db")
        with pytest.raises((OperationalError, InterfaceError, OSError)):  # pg8000: InterfaceError
            lab.query("select 1")
    snapshot = lab.guard.snapshot()
    assert (snapshot.in_use, snapshot.failed) == (0, 1)
    assert lab.pool.checkedout() == 0


def test_integrity_error_proves_life(lab):
    """An error about the statement is an answer: the server is well."""
    lab.protect()
    for sql in ("select 1/0", "select nonsense", "insert into nowhere values (1)"):
        with pytest.raises(Exception, match=r"(?s).*"):
            lab.query(sql)
    snapshot = lab.guard.snapshot()
    assert (snapshot.failed, snapshot.abandoned) == (0, 0)
    assert snapshot.succeeded >= 3


def test_killed_backend_is_a_failure(lab):
    """A session the server ends is the server's doing."""
    lab.protect()
    with pytest.raises(Exception, match=r"(?s).*"):
        lab.query("select pg_terminate_backend(pg_backend_pid())")
    assert lab.guard.snapshot().failed == 1
    assert lab.query("select 1") == 1


def test_hung_database_opens_the_circuit_in_two_thresholds(lab):
    """Statements under way count as slow when they cross the line, not when they end; old successes
    do not hide a pool in which every connection hangs. (Taken at once, they might be slow and end.)"""
    changes = []

    def note(event):
        changes.append(event)

    note.events = (StateChanged,)
    policy = BreakerPolicy(
        slow_call_duration_threshold=0.3, minimum_number_of_calls=4, wait_duration_in_open_state=0.3
    )
    lab.protect(pool_size=3, max_overflow=0, guard={"breaker": policy, "listeners": [note], "timeout": 1.5})
    lab.all([lambda: lab.query("select 1 from pg_sleep(0.1)")] * 3)  # connecting is not what is measured
    for _ in range(30):
        lab.query("select 1")
    with lab.meanwhile(lambda: lab.query("select pg_sleep(1)"), count=3):
        lab.pause(0.7)
        with pytest.raises(CircuitOpenError) as caught:
            lab.query("select 1")
        assert caught.value.retry_after is not None
    assert [change.new for change in changes] == ["open"]
    assert changes[0].cause == "stalled"
    poll(lambda: lab.guard.snapshot().retry_after == 0, "the open wait is over")
    for _ in range(3):
        lab.query("select 1")
    assert [change.new for change in changes] == ["open", "half_open", "closed"]
    assert lab.guard.snapshot().in_use == 0


def test_compartment_leaves_the_rest_alive(lab):
    """A workload that hangs fills its compartment and no more; checkouts inside belong to it."""
    lab.protect(pool_size=3, max_overflow=1)
    reports = lab.guard.compartment("reports")
    assert reports.snapshot().max_concurrent_calls == 2
    with lab.meanwhile(lambda: lab.call(reports, lambda: lab.query("select pg_sleep(1)")), count=2):
        lab.pause(0.3)
        assert (reports.snapshot().in_use, lab.guard.snapshot().in_use) == (2, 2)
        with pytest.raises(BulkheadFullError) as caught:
            lab.call(reports, lambda: lab.query("select 1"))
        assert (caught.value.guard, caught.value.compartment) == ("db", "reports")
        assert lab.query("select 1") == 1
    assert (reports.snapshot().in_use, lab.guard.snapshot().in_use) == (0, 0)
    assert reports.snapshot().succeeded > 0


def test_open_compartment_refuses_before_a_connection_is_taken(lab):
    """While a compartment's circuit is open its calls end at the gate; other calls go on."""
    lab.protect()
    reports = lab.guard.compartment("reports")
    reports.force_open()
    taken = lab.guard.snapshot().admitted
    with pytest.raises(CircuitOpenError):
        lab.call(reports, lambda: pytest.fail("the call started"))
    assert lab.guard.snapshot().admitted == taken
    assert lab.query("select 1") == 1
    reports.reset()
    assert lab.call(reports, lambda: lab.query("select 1")) == 1


def test_transaction_ends_pass_an_open_circuit(lab):
    """What is inside when the circuit opens may finish: statements, COMMIT and ROLLBACK go through."""
    lab.protect()

    def work(session):
        session.execute("select 1")
        lab.guard.force_open()
        session.execute("select 2")
        session.commit()
        session.execute("select 3")
        session.rollback()

    lab.run(work)
    with pytest.raises(CircuitOpenError):
        lab.query("select 1")
    lab.guard.reset()
    assert lab.query("select 1") == 1


def test_guarded_function_opens_a_scope_and_takes_no_slot_of_its_own(postgres):
    """One connection is one slot, decorated or not."""
    engine = create_engine(postgres.url("psycopg"), pool_size=1, max_overflow=0)
    db = protect(engine)

    @guarded(db, timeout=2.0)
    def load():
        with engine.connect() as connection:
            assert db.snapshot().in_use == 1
            return connection.execute(text("select 9")).scalar()

    assert load() == 9
    assert db.snapshot().in_use == 0
    engine.dispose()


def test_every_way_to_a_connection_is_covered(postgres):
    """Session, options engine and raw_connection() all come to the same pool."""
    engine = create_engine(postgres.url("psycopg"), pool_size=1, max_overflow=0)
    db = protect(engine, max_wait_duration=0)
    with OrmSession(engine) as session:
        assert session.execute(text("select 1")).scalar() == 1
        for other in (engine.connect, engine.raw_connection, engine.execution_options(x=1).connect):
            with pytest.raises(BulkheadFullError):
                other()
    raw = engine.raw_connection()
    assert db.snapshot().in_use == 1
    raw.close()
    assert db.snapshot().in_use == 0
    with pytest.raises(ConfigurationError, match="guarded already"):
        protect(engine.execution_options(x=1))
    engine.dispose()


def test_async_session_is_covered(postgres):
    """An AsyncSession's checkouts pass too."""

    async def main():
        engine = create_async_engine(postgres.url("asyncpg"), pool_size=1, max_overflow=0)
        db = protect(engine)
        async with AsyncSession(engine) as session:
            assert (await session.execute(text("select 1"))).scalar() == 1
            assert db.snapshot().in_use == 1
        assert db.snapshot().in_use == 0
        await engine.dispose()

    asyncio.run(main())


def test_forgotten_connection_gives_its_slot_back_when_collected(postgres):
    """A connection that was not closed returns its slot when it is garbage collected."""
    engine = create_engine(postgres.url("psycopg"), pool_size=1, max_overflow=0)
    db = protect(engine)
    fairy = engine.raw_connection()
    assert db.snapshot().in_use == 1
    del fairy
    gc.collect()
    assert db.snapshot().in_use == 0
    engine.dispose()


def test_forgotten_async_connection_gives_its_slot_back_when_collected(postgres):
    """Likewise on an event loop, where SQLAlchemy can only drop the connection."""

    async def main():
        engine = create_async_engine(postgres.url("asyncpg"), pool_size=1, max_overflow=0)
        db = protect(engine)
        connection = await engine.raw_connection()
        assert db.snapshot().in_use == 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del connection
            gc.collect()
        assert any(issubclass(warning.category, SAWarning) for warning in caught)
        assert db.snapshot().in_use == 0
        async with engine.connect() as again:
            assert (await again.execute(text("select 1"))).scalar() == 1
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize(
    "options", [{"poolclass": NullPool}, {"poolclass": StaticPool}, {"max_overflow": -1}], ids=str
)
def test_unlimited_pools_need_a_number(postgres, options):
    """A pool without a limit needs ``max_concurrent_calls``."""
    engine = create_engine(postgres.url("psycopg"), **options)
    with pytest.raises(ConfigurationError, match="max_concurrent_calls"):
        protect(engine)
    db = protect(engine, max_concurrent_calls=2, max_wait_duration=0)
    with engine.connect() as one:
        assert one.execute(text("select 1")).scalar() == 1
        assert db.snapshot().in_use == 1
        if options.get("poolclass") is not StaticPool:
            with engine.connect(), pytest.raises(BulkheadFullError):
                engine.connect()
    assert db.snapshot().in_use == 0
    engine.dispose()


def test_more_slots_than_connections_are_refused(postgres):
    """A bulkhead wider than the pool would queue in the pool, unseen."""
    engine = create_engine(postgres.url("psycopg"))
    for wrong in (16, 0, -1, 2.5, True, "5", float("nan")):
        with pytest.raises(
            ConfigurationError, match="max_concurrent_calls must be a whole number from 1 to 15"
        ):
            protect(engine, max_concurrent_calls=wrong)
    db = protect(engine, max_concurrent_calls=4)
    with pytest.raises(ConfigurationError, match="from 1 to 15"):
        db.resize(16)
    db.resize(15)
    with pytest.raises(ConfigurationError, match="did you mean 'timeout'"):
        protect(create_engine("sqlite://"), max_concurrent_calls=1, timeuot=1)


def test_an_object_that_cannot_be_guarded_is_refused():
    """Anything but an engine is refused, naming what it was."""
    with pytest.raises(ConfigurationError, match="a list cannot be guarded"):
        protect([])


def test_names_hold_no_secrets(postgres):
    """The guard is named after the database; its errors do not show where that is or who asks."""
    engine = create_engine("postgresql+psycopg://alice:hunter2@db.internal.example:5432/payroll", pool_size=1)
    db = protect(engine)
    db.force_open()
    with pytest.raises(CircuitOpenError) as caught:
        engine.connect()
    shown = f"{caught.value}{caught.value!r}{db!r}{db.snapshot()!r}"
    for secret in ("hunter2", "alice", "internal"):
        assert secret not in shown
    assert db.name == "payroll"


def test_threads_and_slots_are_conserved_under_churn(postgres):
    """Many threads, few connections, random cancellations of patience: every slot comes home."""
    engine = create_engine(postgres.url("psycopg"), pool_size=2, max_overflow=1)
    db = protect(engine, max_wait_duration=0.01, max_waiting=4, timeout=0.05)
    served = []

    def work(seed):
        for turn in range(15):
            try:
                with engine.connect() as connection:
                    connection.execute(text(f"select pg_sleep({(seed * 7 + turn) % 9 * 0.01})"))
                    served.append(1)
            except Exception:
                continue

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served
    assert db.snapshot().in_use == engine.pool.checkedout() == 0
    db.reset()
    with engine.connect() as connection:
        assert connection.execute(text("select 1")).scalar() == 1
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql+psycopg://u:secret@db.internal/orders", "orders"),
        ("mysql+pymysql://u:secret@db.internal/shop", "shop"),
        ("postgresql+psycopg://u@db.internal", "postgresql"),
        ("postgresql+psycopg://u@db.internal/", "postgresql"),
        ("sqlite:////var/lib/shop/orders.sqlite3", "orders"),
        ("sqlite://", "sqlite"),
        ("sqlite:///:memory:", "sqlite"),
        ("sqlite:///file:/var/lib/orders.db?uri=true", "orders"),
        (f"postgresql+psycopg://u@db.internal/{'x' * 300}", "x" * 200),
    ],
)
def test_an_engine_is_named_after_its_database(url, name):
    """Neither host nor user nor path; the kind of database where there is no name."""
    engine = create_engine(url)
    guard = protect(engine, max_concurrent_calls=1)
    assert guard.name == name
    guard.detach()
