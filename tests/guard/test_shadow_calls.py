"""Calls of a guard that does not enforce, where something happens in the middle of them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time

import pytest

from guardrails import BreakerPolicy, BulkheadFullError, deadline, remaining
from guardrails._core.gate import Gate
from guardrails._core.outcome import Outcome
from guardrails._guard.guard import attach
from guardrails._runtime.scope import RequestScope, close, current, enter
from guardrails._runtime.shadow_sums import ShadowSums
from guardrails.events import StateChanged, WouldReject, WouldStop
from support.calls import fail, trip, tripping
from support.fake_pool import FakePool


def by_a_thread(guard, fn):
    return guard.run(fn)


def judged(guard):
    now = guard.snapshot()
    return dict(now.rejected), dict(now.would_reject)


def in_use(guard):
    return guard.snapshot().in_use


def fine():
    return "fine"


async def hold(call, release):
    async with call:
        await release.wait()


@pytest.fixture(params=["sync", "async"])
def run(request):
    """Calls a function through a guard in this thread or in a task, inside the present scope."""
    if request.param == "sync":
        return by_a_thread

    def in_a_task(guard, fn):
        async def scripted():
            return fn()

        return asyncio.run(guard.run_async(scripted))

    return in_a_task


@pytest.fixture
def request_scope():
    """The scope that a middleware opens around a request."""
    scope = enter(RequestScope(None, time.monotonic, current()))
    yield scope
    for gate, slot in scope.reserved.values():
        gate.check_in(slot)
    close(scope)


# --- in front of a pool ---------------------------------------------------------------------------


def test_a_call_in_front_of_a_pool_runs_although_the_circuit_is_open(run, make_guard):
    """What is inside it is not counted, a call of the same guard included: enforcing, it would not run."""
    guard = make_guard(breaker=tripping(), mode="shadow")
    inner = make_guard("inner", max_concurrent_calls=1, max_wait_duration=0, mode="shadow")
    attach(guard, FakePool())
    guard.force_open()
    with inner.call(), guard.call():
        assert run(inner, fine) == run(guard, fine) == "fine"
    assert (judged(guard), judged(inner)) == (({}, {"circuit_open": 1}), ({}, {}))


def test_off_a_call_in_front_of_a_pool_counts_nothing(run, make_guard):
    guard = make_guard(breaker=tripping(), mode="off")
    attach(guard, FakePool())
    guard.force_open()
    assert run(guard, fine) == "fine"
    assert judged(guard) == ({}, {})


# --- deadlines ------------------------------------------------------------------------------------


def test_a_call_begun_before_the_guard_was_switched_off_is_not_stopped(make_guard):
    guard = make_guard(timeout=30)
    call = guard.call()

    async def switched():
        async with call:
            guard.set_mode("off")
            assert call.fire() is None

    asyncio.run(switched())
    assert (guard.snapshot().would_stop, guard.snapshot().in_use) == (0, 0)


def test_the_time_of_a_call_that_would_have_waited_begins_with_its_slot_in_the_model(make_guard, clock):
    told = []
    guard = make_guard(
        max_concurrent_calls=1, max_wait_duration=5, timeout=30, mode="shadow", listeners=[told.append]
    )
    first, second = guard.call(), guard.call()

    async def both():
        ends = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(hold(*each)) for each in zip((first, second), ends, strict=True)]
        await asyncio.sleep(0)
        clock.advance(2)
        ends[0].set()
        await tasks[0]
        assert second.fire() == second.due + 2
        assert guard.snapshot().would_stop == 0
        assert second.fire() is None
        assert (guard.snapshot().would_stop, guard._gate.core.bulkhead.taken) == (1, 0)
        ends[1].set()
        await tasks[1]

    asyncio.run(both())
    assert [event.timeout for event in told if isinstance(event, WouldStop)] == [30]
    assert judged(guard) == ({}, {})


def test_a_call_that_would_have_been_refused_meanwhile_is_not_stopped_as_well(make_guard, clock):
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=5, timeout=30, mode="shadow")
    first, second = guard.call(), guard.call()

    async def both():
        end = asyncio.Event()
        tasks = [asyncio.create_task(hold(call, end)) for call in (first, second)]
        await asyncio.sleep(0)
        clock.advance(6)
        assert second.fire() is None
        assert second.left_model
        end.set()
        await asyncio.gather(*tasks)

    asyncio.run(both())
    assert (judged(guard), guard.snapshot().would_stop) == (({}, {"queue_timeout": 1}), 0)


def test_only_enforced_deadlines_count_as_time_left(make_guard, clock):
    """The timeout of a guard in shadow bounds no `remaining`; the deadlines around and inside it do."""
    shadow = make_guard("shadow", timeout=2, mode="shadow")
    strict = make_guard("strict", timeout=3)
    with shadow.call():
        assert remaining() is None
        with deadline(9, clock=clock), shadow.call() as inner:
            assert remaining() == inner.remaining() == 9
            clock.advance(1)
            with deadline(7.5, clock=clock), shadow.call(timeout=0.25):
                assert remaining() == 7.5
                with strict.call():
                    assert remaining() == 3
        with deadline(0.5, clock=clock):
            assert remaining() == 0.5


@pytest.mark.parametrize(("around", "left"), [(None, 5), (9, 5), (3, 3)])
def test_a_deadline_that_a_request_gets_later_bounds_it_like_those_around_it(clock, around, left):
    with contextlib.nullcontext() if around is None else deadline(around, clock=clock):
        scope = enter(RequestScope(None, clock, current()))
        scope.limit_until(clock() + 5, enforced=True)
        assert (remaining(), scope.is_open) == (left, True)
        close(scope)
        assert not scope.is_open


# --- what comes in between ------------------------------------------------------------------------


def test_a_guard_that_enforces_as_the_call_is_about_to_be_let_in_refuses_it(run, make_guard, monkeypatch):
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0, mode="shadow")
    let_in = Gate.let_in

    def switched_first(*args, **options):
        guard.set_mode("enforce")
        return let_in(*args, **options)

    with guard.call():
        monkeypatch.setattr(Gate, "let_in", switched_first)
        with pytest.raises(BulkheadFullError):
            run(guard, fine)
    assert (judged(guard), in_use(guard)) == (({"bulkhead_full": 1}, {}), 0)


@pytest.mark.parametrize("checkout", [False, True])
def test_ctrl_c_in_a_listener_of_what_would_be_refused_leaves_no_call_behind(make_guard, checkout):
    def interrupt(event):
        if isinstance(event, WouldReject):
            raise KeyboardInterrupt

    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0, mode="shadow", listeners=[interrupt])
    gate = guard.call_settings.gates[0]
    with guard.call():
        with pytest.raises(KeyboardInterrupt):
            gate.enter(checkout=checkout)
        assert (in_use(guard), gate.core.outside) == (1, {})
    assert in_use(guard) == 0


@pytest.mark.parametrize("checkout", [False, True])
def test_ctrl_c_in_a_listener_of_the_circuit_gives_the_slot_back(make_guard, clock, checkout):
    told = []

    def interrupt(event):
        if isinstance(event, StateChanged) and event.new == "half_open":
            told.append(event)
            raise KeyboardInterrupt

    guard = make_guard(breaker=tripping(), listeners=[interrupt])
    gate = guard.call_settings.gates[0]
    trip(by_a_thread, guard, clock, 5)
    with pytest.raises(KeyboardInterrupt):
        gate.enter(checkout=checkout)
    assert (len(told), in_use(guard), gate.core.breaker.permits, gate.core.checkouts) == (1, 0, {}, {})


def test_ctrl_c_in_a_listener_as_a_statement_begins_ends_it(make_guard, clock):
    """The beginning finds that the statements before it are slow, and opens the circuit."""

    def interrupt(event):
        if isinstance(event, StateChanged):
            raise KeyboardInterrupt

    policy = BreakerPolicy(minimum_number_of_calls=1, slow_call_duration_threshold=1)
    guard = make_guard(breaker=policy, listeners=[interrupt])
    gate = guard.call_settings.gates[0]
    slow = gate.begin(0)
    clock.advance(2)
    with pytest.raises(KeyboardInterrupt):
        gate.begin(0)
    assert (guard.state, list(gate.core.breaker.overdue), gate.core.breaker.in_flight) == ("open", [slow], {})
    gate.end(slow, Outcome.SUCCESS)


def test_ctrl_c_before_a_statement_or_call_begins_leaves_nothing(make_guard):
    def interrupt():
        raise KeyboardInterrupt

    guard = make_guard()
    gate = guard.call_settings.gates[0]
    gate.clock = interrupt
    with pytest.raises(KeyboardInterrupt):
        gate.begin_slowly(0)
    with pytest.raises(KeyboardInterrupt):
        gate.let_pass()
    assert (gate.core.breaker.in_flight, gate.core.outside) == ({}, {})


def test_a_compartment_has_the_mode_of_its_guard_whatever_the_environment_says_by_then(
    make_guard, monkeypatch
):
    guard = make_guard(mode="shadow")
    monkeypatch.setenv("GUARDRAILS_MODE", "off")
    assert guard.compartment("part").mode == "shadow"


# --- inside a request -----------------------------------------------------------------------------


def test_a_slot_reserved_before_the_circuit_opened_admits_nothing_in_the_model(
    run, make_guard, request_scope
):
    guard = make_guard(breaker=tripping(), mode="shadow")
    gate = guard.call_settings.gates[0]
    request_scope.reserved[gate.core] = gate, asyncio.run(gate.reserve())
    contextvars.Context().run(fail, by_a_thread, guard)
    assert guard.state == "open"
    assert run(guard, fine) == "fine"
    assert judged(guard) == ({}, {"circuit_open": 1})


def test_a_request_that_would_have_been_refused_is_judged_by_a_guard_that_enforces_by_then(
    run, make_guard, request_scope
):
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0, mode="shadow")
    other = guard.call()
    elsewhere = contextvars.Context()
    elsewhere.run(other.__enter__)
    assert run(guard, fine) == "fine"
    assert judged(guard) == ({}, {"bulkhead_full": 1})
    assert run(guard, fine) == "fine"
    assert judged(guard) == ({}, {"bulkhead_full": 1}), "once for each request"
    guard.set_mode("enforce")
    with pytest.raises(BulkheadFullError):
        run(guard, fine)
    elsewhere.run(other.__exit__, None, None, None)
    assert run(guard, fine) == "fine"


def test_a_refusal_after_the_end_of_its_request_marks_no_request(make_guard, clock):
    told = []
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=5, mode="shadow", listeners=[told.append])
    holder = guard.call()
    contextvars.Context().run(holder.__enter__)
    scope = enter(RequestScope(None, clock, None))
    scope.name = "GET /orders/{id}"
    late = guard.call()
    late.__enter__()
    close(scope)
    clock.advance(6)
    assert judged(guard) == ({}, {"queue_timeout": 1})
    assert [event.route for event in told if isinstance(event, WouldReject)] == ["GET /orders/{id}"]
    assert scope.reserved == {}
    late.__exit__(None, None, None)
    holder.__exit__(None, None, None)


# --- the sums -------------------------------------------------------------------------------------


def test_two_calls_beyond_their_limit_are_two_in_one_line_of_the_log(make_guard):
    guard = make_guard(mode="shadow")
    gate = guard.call_settings.gates[0]
    for call in ("first", "second"):
        gate.note_would_stop(call, 0.5, ("shop/orders.py:42 in load",), None)
    assert gate.report.sums.stops == 2
    for call in ("first", "second"):
        gate.report.sums.ended(call)
    assert [each["timeout"] for each in gate.report.sums.report()["longest"]] == [0.5, 0.5]


def test_of_very_many_calls_beyond_a_limit_all_are_counted_and_a_hundred_are_followed():
    sums = ShadowSums()
    for number in range(150):
        sums.stopped(number, 0.5, (), None)
    for number in range(150):
        sums.ended(number)
    assert sums.stops == 150
    assert len(sums._running) == 0
    assert len(sums.report()["longest"]) == 10
