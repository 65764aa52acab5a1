"""The ramp after a recovery through guards: threads and tasks that wait, compartments, figures."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from guardrails import BreakerPolicy, Guard, RejectedError
from guardrails.testing import FakeClock

RAMP = 0.6
PATIENCE = 30.0


def guard_with(ramp=RAMP, slots=3, max_wait=PATIENCE, **options):
    policy = BreakerPolicy(
        recovery_ramp=ramp,
        minimum_number_of_calls=1,
        wait_duration_in_open_state=0,
        permitted_calls_in_half_open_state=1,
        slow_call_duration_threshold=60,
    )
    return Guard("db", max_concurrent_calls=slots, breaker=policy, max_wait_duration=max_wait, **options)


def recover(guard):
    """Opens the circuit by a failure, and closes it by a probe."""
    with contextlib.suppress(ZeroDivisionError):
        guard.run(lambda: 1 // 0)
    assert guard.state == "open"
    guard.run(int)
    assert guard.state == "closed"
    return guard


def recovered_at(events):
    return next(event.at for event in events if getattr(event, "new", None) == "closed")


def test_a_thread_that_waits_gets_the_slot_that_becomes_usable():
    """Nothing else happens meanwhile: the call that has the first slot goes on."""
    events, entered = [], []
    guard = recover(guard_with(listeners=[events.append]))
    with guard.call():

        def work():
            with guard.call():
                entered.append(time.monotonic())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(PATIENCE)
    assert RAMP / 2 <= entered[0] - recovered_at(events) < PATIENCE


def test_tasks_that_wait_get_the_slots_that_become_usable():
    async def serve():
        events, entered, inside = [], [], asyncio.Event()
        guard = recover(guard_with(listeners=[events.append]))

        async def work():
            async with guard.call():
                entered.append(time.monotonic())
                if len(entered) == 2:
                    inside.set()
                await inside.wait()

        async with guard.call(), asyncio.TaskGroup() as group:
            group.create_task(work())
            group.create_task(work())
        assert guard.snapshot().usable_slots == 3
        return [moment - recovered_at(events) for moment in entered]

    first, second = asyncio.run(serve())
    assert RAMP / 2 <= first < second < PATIENCE
    assert second >= RAMP


def test_a_caller_whose_wait_ends_during_the_ramp_is_refused():
    guard = recover(guard_with(ramp=60, max_wait=0.05))
    with guard.call(), pytest.raises(RejectedError) as refusal, guard.call():
        pass
    assert refusal.value.reason == "queue_timeout"


def test_a_clock_that_stands_still_does_not_keep_a_caller_waiting():
    """The ramp does not go on then; the wait ends by the time of the machine."""
    clock = FakeClock()
    guard = recover(guard_with(ramp=1.0, slots=30, max_wait=0.2, clock=clock))
    errors = []

    def work():
        try:
            guard.run(int)
        except RejectedError as error:
            errors.append(error.reason)

    with guard.call():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(PATIENCE)
    assert errors == ["queue_timeout"]


def test_the_figures_of_a_ramp():
    clock = FakeClock()
    guard = guard_with(ramp=10.0, slots=11, clock=clock)
    seen = guard.snapshot()
    assert (seen.usable_slots, seen.recovery_ramp_left) == (11, None)
    recover(guard)
    clock.advance(4)
    seen = guard.snapshot()
    assert (seen.usable_slots, seen.max_concurrent_calls, seen.recovery_ramp_left) == (5, 11, 6.0)
    clock.advance(6)
    seen = guard.snapshot()
    assert (seen.usable_slots, seen.recovery_ramp_left) == (11, None)


def test_each_circuit_ramps_its_own_slots():
    """A compartment that recovers takes nothing from the others, nor from its guard."""
    clock = FakeClock()
    guard = guard_with(ramp=10.0, slots=10, clock=clock)
    reports, orders = guard.compartment("reports"), guard.compartment("orders")
    orders.run(int)
    recover(reports)
    assert reports.snapshot().usable_slots == 1
    assert orders.snapshot().usable_slots == 7
    assert guard.snapshot().usable_slots == 10
    guard.resize(20)
    clock.advance(5)
    assert (reports.snapshot().usable_slots, orders.snapshot().usable_slots) == (7, 14)


def test_a_guard_of_a_pool_ramps_the_slots_of_its_checkouts():
    """The pages show it as full, and the edge asks the gate, as for any full guard."""
    guard = recover(guard_with(ramp=60))
    gate = guard._gate
    slot = gate.check_out_now()
    with pytest.raises(RejectedError) as refusal:
        gate.check_out_now()
    assert refusal.value.reason == "bulkhead_full"
    gate.check_in(slot)
    gate.check_in(gate.check_out_now())
