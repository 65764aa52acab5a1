"""Ctrl-C, a job's time limit, any exception of a signal handler: raised wherever there can be one."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest

from guardrails import Bulkhead, BulkheadFullError, CircuitOpenError, Guard, deadline
from guardrails._pool.checkout import Checkout
from guardrails._runtime.scope import ambient, current
from guardrails.integrations.redis._commands import CommandRunner
from support.calls import Boom, boom, tripping
from support.interrupts import interrupted_everywhere


def warm():
    """A guard whose fast paths are open."""
    guard = Guard("db", max_concurrent_calls=2)
    for _ in range(2):
        guard.run(int)
    return guard


def cold():
    """A guard whose first call takes the slow path."""
    return Guard("db", max_concurrent_calls=2)


def cold_and_divided():
    """A guard with a compartment, whose first call takes the slow path."""
    guard = cold()
    guard.compartment("part", max_concurrent_calls=2)
    return guard


def divided():
    """A guard with a compartment whose fast paths are open."""
    guard = cold_and_divided()
    for _ in range(2):
        guard.compartments[0].run(int)
    return guard


def warm_bulkhead():
    """A bulkhead whose fast path is open."""
    bulkhead = Bulkhead("db", 2)
    for _ in range(2):
        bulkhead.run(int)
    return bulkhead


def opened():
    """A guard whose circuit is open."""
    guard = Guard("db", max_concurrent_calls=2, breaker=tripping())
    with contextlib.suppress(Boom):
        guard.run(boom)
    return guard


def through_run(guard):
    guard.run(int)


def through_a_block(guard):
    with guard.call():
        pass


def through_a_failure(guard):
    with contextlib.suppress(Boom):
        guard.run(boom)


def through_a_refusal(guard):
    with contextlib.suppress(CircuitOpenError):
        guard.run(int)


def through_a_deadline(guard):
    with deadline(5):
        guard.run(int)


def through_a_compartment(guard):
    guard.compartments[0].run(int)


def through_a_pool(guard):
    checkout = Checkout(guard)
    try:
        checkout.take_slots()
    finally:
        checkout.release_slots()


def through_a_redis_pool(guard):
    checkout = CommandRunner(guard, None, is_async=False).enter()
    checkout.release_slots()


def what_is_lost(make, call):
    """Where an interrupt loses a slot or a scope; and that it never costs more than that one."""
    lost, places = [], 0
    for where, guard in interrupted_everywhere(make, call):
        places += 1
        gate = guard._gate
        assert not gate.lock._is_owned(), f"the lock is held after an interrupt at {where}"
        assert not gate.deferred
        slots = gate.core.bulkhead
        inside = [each._gate.core.bulkhead.taken for each in (guard, *guard.compartments)]
        if any(inside) or current() is not None:
            lost.append(where)
        ambient.set(None)
        assert slots.taken <= 1
        assert not slots.queue
        with contextlib.suppress(CircuitOpenError):
            guard.run(int)  # the other slot still works
        for each in (guard, *guard.compartments):  # the next test starts without calls
            each._gate.core.drop_calls_and_waiters()
    return places, lost


@pytest.mark.parametrize(
    ("make", "call", "known"),
    [
        (warm, through_run, []),
        (warm, through_a_failure, []),
        (warm, through_a_deadline, []),
        (divided, through_a_compartment, []),
        (warm_bulkhead, through_run, []),
        (warm_bulkhead, through_a_failure, []),
        (opened, through_a_refusal, []),
        (cold, through_run, []),
        (cold, through_a_failure, []),
        (cold, through_a_deadline, []),
        (cold_and_divided, through_a_compartment, []),
        # The first instruction of what is called to end it: Python protects no `__exit__` written in Python.
        (warm, through_a_block, ["__exit__"]),
        (cold, through_a_block, ["__exit__"]),
        (warm, through_a_pool, ["release_slots"]),
        (cold, through_a_pool, ["release_slots"]),
        (warm, through_a_redis_pool, ["release_slots"]),
        (cold, through_a_redis_pool, ["release_slots"]),
    ],
)
def test_an_interrupt_at_any_place_loses_no_slot_and_no_scope(make, call, known):
    """Admission, the way out, a failure, a refusal, on the fast path and under the lock."""
    places, lost = what_is_lost(make, call)
    assert places >= 8
    assert Counter(function for _, function in lost) <= Counter(known)


def full():
    """A pool's guard with its only slot in use and without a queue."""
    guard = Guard("db", max_concurrent_calls=1, max_wait_duration=0)
    guard._gate.check_out(None)
    return guard


def out_of_the_pool(guard):
    with contextlib.suppress(BulkheadFullError):
        guard._gate.check_out(None)


def at_first_sight(guard):
    guard._gate.preview()


@pytest.mark.parametrize(
    ("make", "refuse", "reason"),
    [(full, out_of_the_pool, "bulkhead_full"), (opened, at_first_sight, "circuit_open")],
)
def test_an_interrupt_of_a_fast_refusal_keeps_no_slot(make, refuse, reason):
    """Neither the lock nor a slot; and a refusal is counted once, or was none."""
    places, made = 0, []
    for where, guard in interrupted_everywhere(lambda: made.append(make()) or made[-1], refuse):
        places += 1
        gate = guard._gate
        assert not gate.lock._is_owned(), f"the lock is held after an interrupt at {where}"
        counted = guard.snapshot().rejected.get(reason, 0)
        refuse(guard)
        assert guard.snapshot().rejected[reason] == counted + 1
        assert gate.core.bulkhead.taken == (make is full)
    assert places >= 4
    for guard in made:
        guard._gate.core.drop_calls_and_waiters()
