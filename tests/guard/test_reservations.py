"""Slots that a request has before its work begins: taken over once, never counted twice, never kept."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import time
import weakref

import pytest

from guardrails import BulkheadFullError, CircuitOpenError, Guard
from guardrails._core.gate import Refusal
from guardrails._runtime.scope import RequestScope, close, current, enter
from guardrails.events import CallRejected
from support.calls import tripping


@pytest.fixture(params=["sync", "async"])
def run(request):
    """Calls a function through a guard, in this thread or in a task, with the request that is current."""
    if request.param == "sync":
        return lambda guard, fn: guard.run(fn)

    def in_a_task(guard, fn):
        async def scripted():
            return fn()

        return asyncio.run(guard.run_async(scripted))

    return in_a_task


@contextlib.contextmanager
def request():
    """The scope that a middleware opens around a request."""
    scope = enter(RequestScope(None, time.monotonic, current()))
    try:
        yield scope
    finally:
        close(scope)


def reserve(scope, guard):
    """Reserves a slot at each gate of a guard that has free slots."""
    for gate in guard.call_settings.gates:
        scope.reserved[gate.core] = gate, asyncio.run(gate.reserve())


def give_back(scope):
    """Gives back what nothing inside has taken over."""
    while scope.reserved:
        _, (gate, slot) = scope.reserved.popitem()
        gate.check_in(slot)


def fine():
    return "fine"


def fail():
    raise ConnectionError


def elsewhere(guard, fn):
    """A call of another request."""
    with contextlib.suppress(ConnectionError):
        contextvars.Context().run(guard.run, fn)


def in_use(guard):
    return guard.snapshot().in_use


def test_the_first_call_inside_takes_the_slot_over(run, make_guard):
    """The only slot is the request's own: its call runs, a second one at the same time does not."""
    db = make_guard(max_concurrent_calls=1, max_wait_duration=0)
    with request() as scope:
        reserve(scope, db)
        assert in_use(db) == 1

        def inside():
            assert (in_use(db), scope.reserved) == (1, {})
            with pytest.raises(BulkheadFullError):
                db.run(fine)

        run(db, inside)
        assert in_use(db) == 0
        run(db, fine)
        give_back(scope)
    assert (in_use(db), db.snapshot().succeeded) == (0, 2)


@pytest.mark.parametrize(
    "check_out",
    [
        lambda gate: gate.check_out(None),
        lambda gate: asyncio.run(gate.check_out_async()),
        lambda gate: gate.check_out_now(),
    ],
    ids=["thread", "task", "now"],
)
def test_the_first_checkout_inside_takes_the_slot_over(make_guard, check_out):
    """In each of the ways in which pools check out; the next checkout finds nothing reserved."""
    db = make_guard(max_concurrent_calls=1, max_wait_duration=0)
    (gate,) = db.call_settings.gates
    with request() as scope:
        reserve(scope, db)
        slot = check_out(gate)
        assert (in_use(db), scope.reserved) == (1, {})
        with pytest.raises(BulkheadFullError):
            check_out(gate)
        gate.check_in(slot)
        give_back(scope)
    assert in_use(db) == 0


def test_a_refusal_is_noted_in_the_request(run, make_guard):
    """A framework's error handler may hide it from the middleware; also where the circuit refuses quickly."""
    db = make_guard(breaker=tripping())
    elsewhere(db, fail)
    with request() as scope:
        with pytest.raises(CircuitOpenError):
            run(db, fine)
        assert scope.request_errors.failing == {("db", None)}


def test_other_requests_cannot_take_a_reserved_slot(run, make_guard):
    """It belongs to one request, not to who comes first."""
    db = make_guard(max_concurrent_calls=1, max_wait_duration=0)
    with request() as scope:
        reserve(scope, db)
        with pytest.raises(BulkheadFullError):
            elsewhere(db, fine)
        give_back(scope)
    assert run(db, fine) == "fine"


def test_a_compartments_call_takes_both_slots_over(run, make_guard):
    """The compartment's and its parent's; a call of the parent alone takes that one."""
    db = make_guard(max_concurrent_calls=1, max_wait_duration=0)
    reports = db.compartment("reports")
    with request() as scope:
        reserve(scope, reports)
        assert (run(reports, fine), scope.reserved) == ("fine", {})
        reserve(scope, reports)
        assert (run(db, fine), in_use(reports), in_use(db)) == ("fine", 1, 0)
        give_back(scope)
    assert in_use(reports) == 0


def test_a_circuit_that_opened_after_the_reservation_refuses(run, make_guard):
    """The slot is no ticket past the circuit."""
    db = make_guard(breaker=tripping())
    with request() as scope:
        reserve(scope, db)
        elsewhere(db, fail)
        with pytest.raises(CircuitOpenError):
            run(db, fine)
        give_back(scope)
    assert in_use(db) == 0


def test_a_reserved_probe_passes_the_early_refusal_of_an_attached_guard(run, make_guard, clock):
    """Its own permit must not look like that of another call."""
    db = make_guard(breaker=tripping(permitted_calls_in_half_open_state=1))
    elsewhere(db, fail)
    clock.advance(5)
    db.call_settings.attached = True
    with request() as scope:
        reserve(scope, db)
        assert run(db, fine) == "fine"
        with pytest.raises(CircuitOpenError):
            elsewhere(db, fine)
        give_back(scope)
    assert run(db, fine) == "fine"


def test_a_reserved_slot_is_taken_over_once_by_many_threads():
    """However many of the request's threads come at once, each slot has one user."""
    db = Guard("db", max_concurrent_calls=1, max_wait_duration=0, timeout=None)
    for _ in range(50):
        together, served = threading.Barrier(4), []

        def work(together=together, served=served):
            together.wait()
            with contextlib.suppress(BulkheadFullError), db.call():
                served.append(in_use(db))
                time.sleep(0.001)

        with request() as scope:
            reserve(scope, db)
            threads = [threading.Thread(target=contextvars.copy_context().run, args=[work]) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert set(served) == {1}
            give_back(scope)
        assert in_use(db) == 0


def test_a_refused_reservation_is_reported_and_counted():
    """It names the reason, tells the listeners, and builds no error."""
    seen = []
    db = Guard("db", max_concurrent_calls=1, max_wait_duration=0, listeners=[seen.append])
    with db.call():
        assert asyncio.run(db.call_settings.gates[0].reserve()) == Refusal("bulkhead_full", None)
    assert [event.reason for event in seen if isinstance(event, CallRejected)] == ["bulkhead_full"]
    assert db.snapshot().rejected["bulkhead_full"] == 1


def test_a_reservation_waits_in_the_queue_and_may_be_cancelled():
    """First come, first served; who is cancelled in the queue leaves nothing behind."""
    db = Guard("db", max_concurrent_calls=1, max_wait_duration=20, max_waiting=3)
    gate = db.call_settings.gates[0]

    async def main():
        first = await gate.reserve()
        waiting = [asyncio.create_task(gate.reserve()) for _ in range(3)]
        await asyncio.sleep(0)
        assert db.snapshot().waiting == 3
        waiting[0].cancel()
        gate.check_in(first)
        second = await waiting[1]
        assert not waiting[2].done()
        gate.check_in(second)
        gate.check_in(await waiting[2])
        gate.check_in(second)

    asyncio.run(main())
    assert (in_use(db), db.snapshot().waiting) == (0, 0)


def test_a_request_notes_the_guards_of_its_calls(run, make_guard):
    """Each guard once, with the moment of its first call, refused or not; nested middleware share it."""
    db, cache = make_guard("db"), make_guard("cache")
    cache.force_open()
    with request() as outer:
        with request() as inner:
            run(db, fine)
            with pytest.raises(CircuitOpenError):
                run(cache, fine)
            run(db, fine)
        assert inner.touched is outer.touched
    assert [call_settings.name for call_settings in outer.touched] == ["db", "cache"]


def test_a_request_is_freed_at_its_end():
    """Its scope is no cyclic garbage, which only a collection would free."""
    gc.disable()
    try:
        scope = enter(RequestScope(None, time.monotonic, current()))
        gone = weakref.ref(scope)
        close(scope)
        del scope
        assert gone() is None
    finally:
        gc.enable()
