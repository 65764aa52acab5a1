"""What ends a fast path in its middle, and the slow path that takes over."""

from __future__ import annotations

import asyncio

import pytest

from guardrails import Guard, guarded
from guardrails._core.criticality import CLASSES
from guardrails._core.outcome import Outcome
from guardrails._guard import fast_path
from guardrails._guard.call import Call
from guardrails._guard.compartments import compartment_for, form_compartments, with_compartments
from guardrails._guard.guard import attach, attachment_of
from guardrails._runtime.scope import RankScope, RequestScope, close, current, enter
from guardrails._util.names import CompartmentName, identity_of
from support.calls import boom


class Interruption(BaseException):
    """As KeyboardInterrupt, but surely ours."""


class BreakingClock:
    """Raises once, when it is told to."""

    now, breaks = 0.0, False

    def __call__(self):
        if self.breaks:
            self.breaks = False
            raise Interruption
        return self.now


@pytest.fixture
def breaking():
    return BreakingClock()


@pytest.fixture
def db(breaking):
    """The next call takes the fast path: the first one opens it."""
    guard = Guard("db", max_concurrent_calls=2, max_wait_duration=0, timeout=None, clock=breaking)
    guard.run(int)
    return guard


def figures(guard):
    """Without the first call."""
    now = guard.snapshot()
    return now.in_use, now.succeeded - 1, now.failed, now.abandoned


def test_an_interrupt_in_the_clock_ends_a_statement_and_releases_a_connection(db, breaking):
    """The interrupt reaches the caller; a clock that raises an Exception is ignored."""
    gate = db._gate
    slot = gate.check_out(None)
    ticket = gate.begin(slot)
    breaking.breaks = True
    with pytest.raises(Interruption):
        gate.end(ticket, Outcome.SUCCESS)
    assert figures(db) == (1, 1, 0, 0)
    breaking.breaks = True
    with pytest.raises(Interruption):
        gate.check_in(slot)
    assert figures(db) == (0, 1, 0, 0)


@pytest.mark.parametrize("compartment", [False, True])
def test_an_interrupt_while_the_deadline_is_set_keeps_no_slot(monkeypatch, db, compartment):
    """The call has its slot by then."""
    guard = db.compartment("reports") if compartment else db
    guard.run(int)
    before = figures(db)[1]

    def interrupt(scope):
        raise Interruption

    with monkeypatch.context() as patched:
        patched.setattr(fast_path, "_set_ambient", interrupt)
        with pytest.raises(Interruption):
            guard.call(1.0).__enter__()
    assert (figures(db), current()) == ((0, before, 0, 1), None)


def test_a_release_that_is_interrupted_is_repeated(monkeypatch, db):
    """Then the interrupt goes on."""
    release, interrupts = Call.release, [Interruption]

    def interrupted(call, outcome):
        if interrupts:
            raise interrupts.pop()
        release(call, outcome)

    call = db.call()
    call.__enter__()
    monkeypatch.setattr(Call, "release", interrupted)
    with pytest.raises(Interruption):
        call.abandon()
    assert figures(db) == (0, 0, 0, 1)


@pytest.mark.parametrize("form", ["run", "guarded"])
def test_an_interrupt_at_the_start_of_leave_keeps_no_slot(monkeypatch, db, form):
    """Python protects no function from that."""

    def leave(call, error, outcome=None):
        raise Interruption

    monkeypatch.setattr(Call, "leave", leave)
    with pytest.raises(Interruption):
        db.run(boom) if form == "run" else guarded(db)(boom)()
    assert figures(db) == (0, 0, 0, 1)


def test_a_block_of_a_task_that_is_left_twice_ends_once(db):
    """As that of a thread."""

    async def main():
        call = db.call()
        await call.__aenter__()
        await call.__aexit__(None, None, None)
        await call.__aexit__(ValueError, ValueError(), None)

    asyncio.run(main())
    assert figures(db) == (0, 1, 0, 0)


def test_a_sheddable_checkout_takes_the_slow_path(make_guard):
    """There its class is noted."""
    db = make_guard(max_concurrent_calls=10)
    db.run(int)
    gate, scope = db._gate, enter(RankScope(CLASSES.index("SHEDDABLE"), current()))
    try:
        slot = gate.check_out(None)
    finally:
        close(scope)
    assert gate.core.bulkhead.ranks.held == [1, 0, 0, 0]
    gate.check_in(slot)
    assert gate.core.bulkhead.ranks.held == [0, 0, 0, 0]


def test_a_reserved_slot_is_used_on_the_fast_path_with_the_time_of_its_use(db, breaking):
    """After the circuit was changed by hand, it takes the slow path."""
    gate, scope = db._gate, enter(RequestScope(None, breaking, current()))
    try:
        for closed in (True, False):
            slot = asyncio.run(gate.reserve())
            scope.reserved[gate.core] = gate, slot
            breaking.now += 0.25
            if not closed:
                db.metrics_only()
            assert gate.try_enter_fast() == (slot if closed else 0)
            assert gate.check_out(None) if not closed else slot
            assert (gate.core.last, gate.core.checkouts[slot]) == (breaking.now, (breaking.now, 0))
            gate.check_in(slot)
    finally:
        close(scope)
    assert figures(db)[0] == 0


@pytest.mark.parametrize("outcome", [Outcome.ABANDONED, Outcome.NEUTRAL])
def test_an_end_without_evidence_changes_no_workload_on_the_fast_path(db, outcome):
    """The ticket is forgotten all the same."""
    gate = db.compartment("reports").call_settings.gates[-1]
    ticket = gate.begin(0, 1)
    assert gate.core.breaker.workload_by_ticket == {ticket: gate.workload}
    gate.workload.note_bad_call(0.0)
    gate.end(ticket, outcome, 1)
    assert gate.core.breaker.workload_by_ticket == {}
    assert (gate.workload.bad_calls, gate.workload.pending_successes) == (1, 0)
    assert figures(db) == ((0, 1, 0, 0) if outcome is Outcome.NEUTRAL else (0, 0, 0, 1))


@pytest.mark.parametrize("is_async", [False, True])
def test_a_declared_compartment_of_a_plain_guard_checks_out_within_its_own_size(db, is_async):
    """It has no other compartments whose shares would change."""
    gate = db.compartment("reports", max_concurrent_calls=1)._gate
    assert gate.auto_compartments is None
    slot = asyncio.run(gate.check_out_async()) if is_async else gate.check_out(None)
    assert (gate.core.bulkhead.taken, db.snapshot().in_use) == (1, 0)
    gate.check_in(slot)
    assert gate.core.bulkhead.taken == 0


def test_guards_are_listed_with_their_compartments_in_order(db, make_guard):
    """Each guard before its compartments, and each compartment before its own."""
    reports = db.compartment("reports")
    nightly, other = reports.compartment("nightly"), make_guard("cache")
    assert list(with_compartments([db, other])) == [db, reports, nightly, other]


def test_a_compartment_has_the_attachment_of_its_guard(db):
    """None before it is attached and after it is detached."""

    class Pool:
        most = 2

        def detach(self):
            pass

    pool, part = Pool(), db.compartment("reports")
    assert attachment_of(part) is None
    attach(db, pool)
    assert (attachment_of(db), attachment_of(part)) == (pool, pool)
    db.detach()
    assert (attachment_of(db), attachment_of(part)) == (None, None)
    db.run(int)


def test_the_name_of_an_automatic_compartment_has_that_of_its_guard():
    """Any other name is the name of a guard itself."""
    name = CompartmentName("GET /orders", "db")
    assert (name, identity_of(name), repr(name)) == (
        "GET /orders",
        ("db", "GET /orders"),
        "'GET /orders' of 'db'",
    )
    assert identity_of(CompartmentName("rows", name)) == ("db", "rows"), "of a compartment's compartment"
    assert identity_of("cache") == ("cache", None)


def test_a_guard_divided_by_another_thread_in_the_meantime_stays_divided(make_guard):
    """The compartment passes its own gate, and is not noted as the only one."""
    db = make_guard()
    form_compartments(db)
    compartments, orders = db.call_settings.auto_compartments, compartment_for(db, "orders")._gate

    class DividesFirst:
        def __enter__(self):
            compartments.divided = True

        def __exit__(self, *_):
            pass

    compartments._lock = DividesFirst()
    assert compartments.is_divided_for(orders)
    assert compartments.sole is None
