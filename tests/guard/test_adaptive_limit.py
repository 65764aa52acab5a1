"""The adaptive limit of guards: settings, compartments, pools, figures, threads."""

from __future__ import annotations

import contextlib
import gc
import pickle
import threading
import time
import weakref

import psycopg
import pytest
from psycopg.errors import SerializationFailure
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool, QueuePool

from guardrails import Adaptive, ConfigurationError, Guard, RejectedError, protect
from guardrails._core.gate import SlotsChanged
from guardrails._guard.compartments import compartment_for, form_compartments
from guardrails._guard.metrics import GUARDS, reading
from guardrails.testing import FakeClock


def guard_with(maximum=20, minimum=2, mode="enforce", **options):
    limit = Adaptive(minimum=minimum, maximum=maximum, mode=mode)
    return Guard("db", max_concurrent_calls=limit, **options)


def set_limit(guard, slots):
    """Makes the limit change as a decision does."""

    def move(now):
        core = guard._gate.core
        core.advance_model(now)  # ends a window that is over
        core.adaptive.limit = core.adaptive.applied = slots
        core._fit_slots(core.bulkhead.limit)
        core.outbox.append(SlotsChanged(slots))

    guard._gate.step(move)


# --- settings -----------------------------------------------------------------------------------


def test_a_guard_without_a_pool_needs_a_maximum():
    with pytest.raises(
        ConfigurationError, match=r"max_concurrent_calls.maximum must be .* from 3 .* got None"
    ):
        Guard("db", max_concurrent_calls=Adaptive(minimum=3))


def test_a_compartment_has_a_fixed_number_of_slots():
    with pytest.raises(ConfigurationError, match="max_concurrent_calls must be a whole number"):
        guard_with().compartment("reports", max_concurrent_calls=Adaptive(maximum=3))


def test_a_resize_sets_the_maximum_and_keeps_to_the_minimum():
    guard = guard_with(minimum=3)
    with pytest.raises(ConfigurationError, match=r"from 3 to .*, got 2"):
        guard.resize(2)
    guard.resize(5)
    seen = guard.snapshot()
    assert (seen.max_concurrent_calls, seen.usable_slots, seen.adaptive_limit) == (5, 5, 5)


def test_an_adaptive_is_a_value():
    assert pickle.loads(pickle.dumps(Adaptive(minimum=2))) == Adaptive(minimum=2)


@pytest.fixture
def engine():
    found = create_engine("sqlite://", poolclass=QueuePool, pool_size=4, max_overflow=2)
    yield found
    found.dispose()


def test_the_maximum_of_a_pool_is_its_capacity(engine):
    guard = protect(engine, name="db", max_concurrent_calls=Adaptive(minimum=2))
    assert guard.snapshot().adaptive_limit == 6
    guard.detach()
    guard = protect(engine, name="db", max_concurrent_calls=Adaptive(maximum=5))
    assert guard.snapshot().adaptive_limit == 5
    with pytest.raises(ConfigurationError, match="from 1 to 6, got 7"):
        guard.resize(7)
    guard.detach()


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (Adaptive(maximum=7), r"max_concurrent_calls.maximum must be .* from 1 to 6, or None, got 7"),
        (Adaptive(minimum=7), r"max_concurrent_calls.minimum must be .* from 1 to 6, got 7"),
    ],
)
def test_a_limit_above_the_capacity_of_the_pool_is_refused(engine, limit, message):
    with pytest.raises(ConfigurationError, match=message):
        protect(engine, name="db", max_concurrent_calls=limit)


def test_an_unlimited_pool_needs_a_maximum():
    unlimited = create_engine("sqlite://", poolclass=NullPool)
    with pytest.raises(ConfigurationError, match="any number of connections"):
        protect(unlimited, name="db", max_concurrent_calls=Adaptive())
    guard = protect(unlimited, name="db", max_concurrent_calls=Adaptive(maximum=3))
    assert guard.snapshot().adaptive_limit == 3
    guard.detach()


def test_a_checkout_counts_as_a_call_at_once_and_a_statement_as_served(engine):
    """The limit is one of connections, and each statement that succeeds is work done."""
    guard = protect(engine, name="db", max_concurrent_calls=Adaptive(minimum=2))
    adaptive = guard._gate.core.adaptive
    with engine.connect() as connection:
        for _ in range(5):
            connection.exec_driver_sql("select 1")
        assert guard.snapshot().succeeded - adaptive._served >= 5
        assert guard._gate.core.under_way == 1
    guard.detach()


# --- compartments -------------------------------------------------------------------------------


def test_compartments_of_the_default_size_follow_the_limit():
    guard = guard_with()
    reports, fixed = guard.compartment("reports"), guard.compartment("fixed", max_concurrent_calls=3)
    set_limit(guard, 10)
    assert guard.snapshot().usable_slots == 10
    assert reports.snapshot().max_concurrent_calls == 7
    assert fixed.snapshot().max_concurrent_calls == 3
    assert guard.compartment("late").snapshot().max_concurrent_calls == 7
    guard.resize(6)
    assert reports.snapshot().max_concurrent_calls == 4
    guard.set_mode("shadow")
    assert reports.snapshot().max_concurrent_calls == 4
    set_limit(guard, 2)
    assert (guard.snapshot().usable_slots, reports.snapshot().max_concurrent_calls) == (6, 4)
    guard.set_mode("enforce")
    assert (guard.snapshot().usable_slots, reports.snapshot().max_concurrent_calls) == (2, 1)


def test_automatic_compartments_follow_the_limit():
    guard = guard_with()
    form_compartments(guard)
    orders, items = (compartment_for(guard, name) for name in ("orders", "items"))
    for part in (orders, items, orders):
        part.run(int)
    assert orders.snapshot().max_concurrent_calls == 14
    set_limit(guard, 10)
    assert orders.snapshot().max_concurrent_calls == 7


def test_the_only_active_compartment_can_use_a_larger_number_that_is_tried():
    """Else the limit could not go up again while the others are quiet."""
    clock = FakeClock()
    guard = guard_with(clock=clock)
    form_compartments(guard)
    orders, items = (compartment_for(guard, name) for name in ("orders", "items"))
    for part in (items, orders):
        part.run(int)
    clock.advance(61)  # items is not active any more
    set_limit(guard, 10)
    with contextlib.ExitStack() as calls:
        for _ in range(8):
            calls.enter_context(orders.call())
        assert orders.snapshot().max_concurrent_calls == 10
        guard._gate.step(lambda _: setattr(guard._gate.core.adaptive, "applied", 13))
        guard._gate.share_slots()
        assert orders.snapshot().max_concurrent_calls == 13


def test_a_limit_in_shadow_changes_no_compartment():
    guard = guard_with(mode="shadow")
    reports = guard.compartment("reports")
    set_limit(guard, 10)
    seen = guard.snapshot()
    assert (seen.adaptive_limit, seen.usable_slots) == (10, 20)
    assert reports.snapshot().max_concurrent_calls == 14


def test_a_guard_that_is_forgotten_is_collected():
    """The gate tells its guard of a change, and does not keep it alive."""
    guard = guard_with()
    gate, seen = guard._gate, weakref.ref(guard)
    share = gate.share_slots
    del guard
    gc.collect()
    del gate
    assert seen() is None
    share()


# --- figures ------------------------------------------------------------------------------------


def test_the_metric_is_absent_without_an_adaptive_limit():
    figures = {name: seen.adaptive_limit for (name,), seen in reading(GUARDS, [guard_with()]).items()}
    assert figures == {"db": 20}
    assert Guard("other", max_concurrent_calls=3).snapshot().adaptive_limit is None


# --- threads ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_threads_get_the_limit_that_serves_most():
    """Work that takes longer the more threads do it at once: with 24 a hundredth is done of what four do."""
    inside, lock = [0], threading.Lock()

    def work():
        with lock:
            inside[0] += 1
            crowd = inside[0]
        time.sleep(0.002 * max(1, crowd - 3) ** 1.5)
        with lock:
            inside[0] -= 1

    guard = guard_with(maximum=24, max_wait_duration=0.01, breaker=None)
    stop = time.monotonic() + 60

    def user():
        while time.monotonic() < stop and guard.snapshot().adaptive_limit > 16:
            try:
                guard.run(work)
            except RejectedError:
                time.sleep(0.002)

    threads = [threading.Thread(target=user) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guard.snapshot().adaptive_limit <= 16
    assert guard.snapshot().in_use == 0


def test_a_guard_with_a_fake_clock_learns_nothing_while_time_stands_still():
    guard = guard_with(clock=FakeClock())
    for _ in range(100):
        guard.run(int)
    assert guard.snapshot().adaptive_limit == 20


@pytest.mark.slow
def test_conflicting_transactions_on_postgresql(postgres):
    """Each does its work, changes one row that all want, and begins again after a conflict."""
    url = postgres.url("psycopg").replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table hot (n int); insert into hot values (0)")
    try:
        fixed = transfers(url, 16)
        adaptive = transfers(url, Adaptive(maximum=16, mode="enforce"))
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("drop table hot")
    # Twice as many on a quiet machine, where the conflicts decide; less where the processor does.
    assert adaptive > fixed


def transfers(url, limit, users=16, seconds=14.0):
    """The number of transactions that are committed in the second half of the time."""
    guard = Guard("db", max_concurrent_calls=limit, max_wait_duration=0.02, timeout=None, breaker=None)
    stop, done = time.monotonic() + seconds, []

    def transfer(connection):
        while time.monotonic() < stop:
            with contextlib.suppress(SerializationFailure), connection.transaction():
                connection.execute("select count(*) from generate_series(1, 15000)")
                connection.execute("update hot set n = n + 1")
                return

    def user():
        with psycopg.connect(url) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            while (now := time.monotonic()) < stop:
                try:
                    guard.run(transfer, connection)
                    done.append(now)
                except RejectedError:
                    time.sleep(0.01)

    threads = [threading.Thread(target=user) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(moment > stop - seconds / 2 for moment in done)
