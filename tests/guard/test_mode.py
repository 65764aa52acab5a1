"""The modes of a guard: what shadow counts in place of acting, what off leaves alone, and every switch."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import threading
from functools import partial

import pytest

from guardrails import BreakerPolicy, Bulkhead, BulkheadFullError, ConfigurationError, Guard, deadline
from guardrails.errors import CallTimeoutError
from guardrails.events import CallRejected, WouldReject, WouldStop
from support.calls import fail, succeed

MODES = ("enforce", "shadow", "off")
TRIPS_AT_TWO = BreakerPolicy(
    sliding_window_type="count",
    sliding_window_size=2,
    minimum_number_of_calls=2,
    wait_duration_in_open_state=5,
    open_jitter=0,
    permitted_calls_in_half_open_state=1,
)


def judged(guard):
    now = guard.snapshot()
    return dict(now.rejected), dict(now.would_reject)


def start_apart(guard):
    """Begins a call of another thread or task, as far as the guard can see."""
    context, call = contextvars.Context(), guard.call()
    context.run(call.__enter__)
    return partial(context.run, call.__exit__, None, None, None)


# --- which mode -----------------------------------------------------------------------------------


def test_a_guard_enforces_by_default(make_guard, monkeypatch):
    monkeypatch.delenv("GUARDRAILS_MODE", raising=False)
    guard = make_guard()
    assert guard.mode == guard.snapshot().mode == "enforce"


@pytest.mark.parametrize(
    ("environment", "code", "mode"),
    [
        (None, None, "enforce"),
        ("", None, "enforce"),
        ("shadow", None, "shadow"),
        ("shadow", "enforce", "enforce"),
        ("enforce", "shadow", "shadow"),
        ("off", None, "off"),
        ("off", "enforce", "off"),
        ("off", "shadow", "off"),
        (None, "off", "off"),
    ],
)
def test_the_environment_gives_the_mode_unless_the_code_does_and_off_wins(
    make_guard, monkeypatch, environment, code, mode
):
    monkeypatch.delenv("GUARDRAILS_MODE", raising=False)
    if environment is not None:
        monkeypatch.setenv("GUARDRAILS_MODE", environment)
    guard = make_guard(mode=code)
    assert guard.mode == guard.compartment("part").mode == mode


def test_a_bulkhead_alone_takes_the_mode_of_the_environment(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_MODE", "shadow")
    assert Bulkhead("reports", 3).mode == "shadow"


def test_a_variable_that_is_no_mode_is_refused_by_name(make_guard, monkeypatch):
    monkeypatch.setenv("GUARDRAILS_MODE", "shadw")
    with pytest.raises(ConfigurationError) as refused:
        make_guard()
    for word in ("GUARDRAILS_MODE", "'shadw'", "'enforce' or 'shadow' or 'off'"):
        assert word in str(refused.value)


@pytest.mark.parametrize("mode", ["", "Shadow", "none", 1, True, ["shadow"]])
def test_what_is_no_mode_is_refused(make_guard, mode):
    with pytest.raises(ConfigurationError, match="mode must be 'enforce' or 'shadow' or 'off'"):
        make_guard(mode=mode)
    with pytest.raises(ConfigurationError, match="mode must be 'enforce' or 'shadow' or 'off'"):
        make_guard().set_mode(mode)


def test_a_compartment_has_the_mode_of_its_guard(make_guard):
    guard = make_guard()
    part = guard.compartment("part")
    inner = part.compartment("inner")
    guard.set_mode("shadow")
    assert part.mode == inner.mode == guard.compartment("later").mode == "shadow"
    with pytest.raises(ConfigurationError, match="compartment 'part' of 'db' has the mode of its guard"):
        part.set_mode("off")
    with pytest.raises(ConfigurationError, match="compartment 'third' has the mode of its guard"):
        guard.compartment("third", mode="off")


def test_a_guard_that_the_environment_has_switched_off_stays_off(make_guard, monkeypatch, caplog):
    monkeypatch.setenv("GUARDRAILS_MODE", "off")
    guard = make_guard()
    with caplog.at_level(logging.WARNING, "guardrails"):
        guard.set_mode("enforce")
    assert guard.mode == "off"
    assert "GUARDRAILS_MODE=off" in caplog.text


# --- shadow ---------------------------------------------------------------------------------------


def test_a_full_bulkhead_lets_everybody_in_and_counts_them(run, make_guard):
    guard = make_guard(max_concurrent_calls=2, max_wait_duration=0, mode="shadow")
    ends = [run.start(guard) for _ in range(5)]
    assert guard.snapshot().in_use == 2
    assert judged(guard) == ({}, {"bulkhead_full": 3})
    for end in ends:
        end()
    assert guard.snapshot().in_use == 0
    succeed(run, guard)
    assert judged(guard) == ({}, {"bulkhead_full": 3})


def test_an_open_circuit_lets_everybody_in_and_goes_through_its_states(run, make_guard, clock):
    """Only what enforcing would admit is evidence: calls let in meanwhile neither close nor reopen it."""
    guard = make_guard(breaker=TRIPS_AT_TWO, mode="shadow")
    fail(run, guard, 2)
    assert guard.state == "open"
    fail(run, guard, 3)
    succeed(run, guard, 3)
    assert judged(guard) == ({}, {"circuit_open": 6})
    assert guard.snapshot().failed == 2
    clock.advance(5)
    probe = run.start(guard)
    assert guard.state == "half_open"
    succeed(run, guard)
    assert judged(guard) == ({}, {"circuit_open": 7})
    probe()
    assert guard.state == "closed"


def test_a_caller_that_would_wait_runs_at_once_and_is_refused_in_the_model_when_its_time_is_up(
    make_guard, clock
):
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0.05, mode="shadow")
    ends = [start_apart(guard), start_apart(guard)]
    assert judged(guard) == ({}, {})
    clock.advance(0.051)
    assert judged(guard) == ({}, {"queue_timeout": 1})
    for end in ends:
        end()


def test_a_caller_that_would_get_the_slot_in_time_is_admitted_in_the_model(make_guard, clock):
    """It holds the slot for as long as its call takes, from then on."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0.05, mode="shadow")
    end = start_apart(guard)
    clock.advance(0.01)
    waited = start_apart(guard)
    clock.advance(0.02)
    end()  # the second begins in the model here, 20 ms late
    clock.advance(0.05)
    waited()
    assert (guard.snapshot().in_use, guard.snapshot().admitted) == (0, 2)
    clock.advance(0.01)
    start_apart(guard)()  # the model's slot is in use for 10 ms more
    assert guard.snapshot().admitted == 2
    clock.advance(0.011)
    assert (judged(guard), guard.snapshot().admitted) == (({}, {}), 3)


def test_a_call_that_ends_before_its_slot_comes_free_is_judged_by_the_model(make_guard, clock):
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0.05, max_waiting=5, mode="shadow")
    end = start_apart(guard)
    start_apart(guard)()
    clock.advance(0.04)
    start_apart(guard)()
    clock.advance(0.02)
    end()
    assert (judged(guard), guard.snapshot().admitted) == (({}, {"queue_timeout": 1}), 2)
    clock.advance(1)
    assert guard.snapshot().in_use == 0


def test_a_call_that_is_refused_after_a_wait_holds_no_slot_of_its_guard_in_the_model(make_guard, clock):
    """It waits at its compartment; enforcing, it would ask the guard for a slot only after that."""
    guard = make_guard(max_concurrent_calls=2, max_wait_duration=0.05, max_waiting=5, mode="shadow")
    part = guard.compartment("part", max_concurrent_calls=1)
    ends = [start_apart(part), start_apart(part)]
    assert guard._gate.core.bulkhead.taken == 2
    clock.advance(0.06)
    assert (judged(part), judged(guard)) == (({}, {"queue_timeout": 1}), ({}, {}))
    assert (guard._gate.core.bulkhead.taken, guard.snapshot().in_use) == (1, 2)
    start_apart(guard)()
    assert judged(guard) == ({}, {})
    for end in ends:
        end()
    assert (guard.snapshot().in_use, part.snapshot().in_use) == (0, 0)


def test_the_model_keeps_no_caller_and_no_request_of_a_call_that_has_its_slot(make_guard, clock):
    """Else what its code forgets would never be collected."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0.05, max_waiting=5, mode="shadow")
    first, second = start_apart(guard), start_apart(guard)
    (waiting,) = guard._gate.core.outside.values()
    assert waiting.owner is not None
    clock.advance(0.01)
    first()
    assert (waiting.inner > 0, waiting.owner, waiting.origin) == (True, None, None)
    second()


def test_a_caller_that_has_every_slot_itself_would_wait_in_vain(run, make_guard):
    guard = make_guard(max_concurrent_calls=1, timeout=1, mode="shadow")
    end = run.start(guard)
    succeed(run, guard)
    assert judged(guard) == ({}, {"queue_timeout": 1})
    end()


def test_a_spent_deadline_refuses_nothing(make_guard, clock):
    guard = make_guard(mode="shadow", timeout=1)
    with deadline(0, clock=clock):
        assert guard.run(lambda: "fine") == "fine"
    assert judged(guard) == ({}, {"deadline_spent": 1})


def test_what_runs_inside_a_call_that_would_not_run_is_not_counted(make_guard):
    """Enforcing, nobody would have asked the inner guard."""
    outer, inner = (
        make_guard(name, max_concurrent_calls=1, max_wait_duration=0, timeout=1, mode="shadow")
        for name in ("outer", "inner")
    )
    ends = [start_apart(outer), start_apart(inner)]
    with outer.call(), inner.call():
        pass
    assert (judged(outer)[1], judged(inner)[1]) == ({"bulkhead_full": 1}, {})
    for end in ends:
        end()
    with outer.call(), inner.call():
        pass
    assert (outer.snapshot().admitted, inner.snapshot().admitted) == (2, 2)


def test_a_compartment_that_would_refuse_is_asked_alone(run, make_guard):
    guard = make_guard(max_concurrent_calls=2, max_wait_duration=0, mode="shadow")
    part = guard.compartment("part", max_concurrent_calls=1)
    ends = [run.start(part) for _ in range(4)]
    assert (judged(part)[1], judged(guard)[1]) == ({"bulkhead_full": 3}, {})
    assert (part.snapshot().in_use, guard.snapshot().in_use) == (1, 2)
    for end in ends:
        end()
    assert (part.snapshot().in_use, guard.snapshot().in_use) == (0, 0)


def test_a_guard_that_would_refuse_takes_the_compartment_s_slot_back(run, make_guard):
    guard = make_guard(max_concurrent_calls=2, max_wait_duration=0, mode="shadow")
    part = guard.compartment("part", max_concurrent_calls=2)
    ends = [run.start(guard), run.start(guard)]
    inside = run.start(part)
    assert (judged(part)[1], judged(guard)[1]) == ({}, {"bulkhead_full": 1})
    ends.pop()()
    ends += [run.start(part)]
    assert part.snapshot().would_reject == {}
    for end in [*ends, inside]:
        end()
    assert (part.snapshot().in_use, guard.snapshot().in_use) == (0, 0)


async def sleep_through(seconds, result=7):
    await asyncio.sleep(seconds)
    return result


def test_an_asyncio_call_is_not_stopped_at_its_deadline():
    told = []

    def listen(event):
        told.append(event)

    guard = Guard("api", max_concurrent_calls=5, timeout=0.02, mode="shadow", listeners=[listen])
    assert asyncio.run(guard.run_async(sleep_through, 0.06)) == 7
    seen = guard.snapshot()
    assert (seen.would_stop, seen.failed, seen.in_use) == (1, 1, 0)
    (event,) = [event for event in told if isinstance(event, WouldStop)]
    assert (event.guard, event.timeout, event.route) == ("api", 0.02, None)
    assert event.where[0].endswith("in sleep_through")


def test_a_call_that_would_be_stopped_gives_its_slot_back_at_its_deadline():
    guard = Guard("api", max_concurrent_calls=1, max_wait_duration=0, timeout=0.02, mode="shadow")

    async def three():
        over = asyncio.Event()
        first = asyncio.create_task(guard.run_async(over.wait))
        async with asyncio.timeout(20):
            while not guard.snapshot().would_stop:
                await asyncio.sleep(0.005)
        await guard.run_async(sleep_through, 0)
        assert guard.snapshot().would_reject == {}
        over.set()
        await first

    asyncio.run(three())
    assert (guard.snapshot().would_stop, guard.snapshot().admitted) == (1, 2)


def test_each_refusal_is_an_event_with_its_reason(make_guard):
    told = []
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0, mode="shadow", listeners=[told.append])
    with guard.call():
        guard.run(int)
    refused = [event for event in told if isinstance(event, WouldReject)]
    assert [(event.guard, event.reason, event.retry_after) for event in refused] == [
        ("db", "bulkhead_full", None)
    ]
    assert not [event for event in told if isinstance(event, CallRejected)]
    assert sorted({event.seq for event in told}) == sorted(event.seq for event in told)


# --- off ------------------------------------------------------------------------------------------


def test_off_lets_every_call_pass_and_counts_none(run, make_guard, clock):
    guard = make_guard(max_concurrent_calls=1, breaker=TRIPS_AT_TWO, mode="off", timeout=1)
    ends = [run.start(guard) for _ in range(4)]
    clock.advance(3)
    for end in ends:
        end()
    with deadline(0, clock=clock):
        guard.run(int)
    fail(run, guard, 5)
    now = guard.snapshot()
    assert (now.state, now.calls, now.admitted, now.failed, now.succeeded) == ("closed", 0, 0, 0, 0)
    assert judged(guard) == ({}, {})
    assert (now.would_stop, now.in_use) == (0, 0)


# --- switching ------------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", list(itertools.product(MODES, repeat=3)), ids="-".join)
def test_switching_with_calls_under_way_loses_no_slot(run, make_guard, clock, modes):
    """Calls begun in every mode end in every other; when all have ended there are as many slots as before."""
    guard = make_guard(max_concurrent_calls=3, max_wait_duration=0.05, breaker=TRIPS_AT_TWO, timeout=1)
    part = guard.compartment("part", max_concurrent_calls=2)
    ends = []
    for mode in modes:
        guard.set_mode(mode)
        for entered in (guard, part, part):
            if mode != "enforce":
                ends.append(run.start(entered))
                clock.advance(0.01)
        if mode == "enforce" and guard.snapshot().in_use == 0:
            ends.append(run.start(guard))
        if len(ends) > 2:
            ends.pop(0)()
            ends.pop(1)()
    running = len(ends)
    guard.set_mode("enforce")
    assert guard.snapshot().in_use == running
    for end in ends:
        end()
    guard.reset()
    assert (guard.snapshot().in_use, part.snapshot().in_use) == (0, 0)
    full = [run.start(guard) for _ in range(3)]
    for end in full:
        end()
    assert guard.snapshot().in_use == 0


def test_calls_begun_off_hold_slots_once_the_guard_enforces(run, make_guard):
    guard = make_guard(max_concurrent_calls=2, max_wait_duration=0, mode="off")
    ends = [run.start(guard) for _ in range(3)]
    guard.set_mode("enforce")
    assert guard.snapshot().in_use == 3
    with pytest.raises(BulkheadFullError):
        run(guard, int)
    ends.pop()()
    with pytest.raises(BulkheadFullError):
        run(guard, int)
    ends.pop()()
    succeed(run, guard)
    ends.pop()()
    assert guard.snapshot().in_use == 0


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_thread_that_waits_for_a_slot_is_let_in_when_nothing_is_enforced_any_more(mode):
    guard = Guard("db", max_concurrent_calls=1, max_wait_duration=30, timeout=None)
    results = []
    with guard.call():
        waiting = threading.Thread(target=lambda: results.append(guard.run(lambda: "in")))
        waiting.start()
        while not guard.snapshot().waiting:
            pass
        guard.set_mode(mode)
        waiting.join(10)
        assert results == ["in"]
    assert guard.snapshot().in_use == 0


def test_a_task_that_waits_for_a_slot_is_let_in_when_nothing_is_enforced_any_more():
    guard = Guard("db", max_concurrent_calls=1, max_wait_duration=30, timeout=None)

    async def both():
        async with guard.call():
            waiting = asyncio.create_task(guard.run_async(sleep_through, 0))
            await asyncio.sleep(0)
            assert guard.snapshot().waiting == 1
            guard.set_mode("shadow")
            assert await waiting == 7

    asyncio.run(both())
    assert guard.snapshot().in_use == 0


def test_a_deadline_of_a_call_under_way_stops_it_only_while_the_guard_enforces():
    guard = Guard("api", max_concurrent_calls=5, timeout=0.02)

    async def switched():
        task = asyncio.create_task(guard.run_async(sleep_through, 0.06))
        await asyncio.sleep(0)
        guard.set_mode("shadow")
        assert await task == 7
        guard.set_mode("enforce")
        with pytest.raises(CallTimeoutError):
            await guard.run_async(sleep_through, 1)

    asyncio.run(switched())
    assert (guard.snapshot().would_stop, guard.snapshot().in_use) == (1, 0)


def test_threads_that_switch_and_call_at_once_lose_no_slot():
    guard = Guard("db", max_concurrent_calls=3, max_wait_duration=0.001, timeout=None)
    over = threading.Event()

    def call():
        while not over.is_set():
            try:
                with guard.call():
                    pass
            except BulkheadFullError:
                pass

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for mode in MODES * 200:
        guard.set_mode(mode)
    over.set()
    for thread in threads:
        thread.join(10)
    guard.set_mode("enforce")
    assert (guard.snapshot().in_use, guard.snapshot().waiting) == (0, 0)
