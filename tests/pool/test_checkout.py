"""Slots that an asyncio task takes for a connection, and slots that are taken without waiting."""

from __future__ import annotations

import asyncio

import pytest

from guardrails import BulkheadFullError, DeadlineSpentError, Guard, deadline
from guardrails._pool.checkout import Checkout


def guard_of(**options):
    return Guard("pool", max_concurrent_calls=1, max_wait_duration=0, **options)


def test_a_task_takes_a_slot_and_gives_it_back():
    """A second one is refused, and takes nothing."""

    async def work():
        guard = guard_of()
        first, second = Checkout(guard), Checkout(guard)
        await first.take_slots_async()
        assert guard.snapshot().in_use == 1
        with pytest.raises(BulkheadFullError):
            await second.take_slots_async()
        assert second.slots == []
        first.release_slots()
        await second.take_slots_async()
        second.release_slots()
        assert guard.snapshot().in_use == 0

    asyncio.run(work())


def test_a_task_without_time_left_takes_none():
    """Its deadline counts as it does in a thread."""

    async def work():
        guard = guard_of()
        with deadline(0.001):
            await asyncio.sleep(0.01)
            with pytest.raises(DeadlineSpentError):
                await Checkout(guard).take_slots_async()
        with deadline(20):
            checkout = Checkout(guard)
            await checkout.take_slots_async()
            checkout.release_slots()
        assert guard.snapshot().in_use == 0

    asyncio.run(work())


def test_in_shadow_a_task_beyond_the_slots_is_let_in():
    """It leaves the model of the compartment's parent, too."""

    async def work():
        guard = guard_of(mode="shadow")
        part = guard.compartment("part")
        checkouts = [Checkout(part) for _ in range(2)]
        for checkout in checkouts:
            await checkout.take_slots_async()
        assert guard.snapshot().would_reject == {"bulkhead_full": 1} or part.snapshot().would_reject
        for checkout in checkouts:
            checkout.release_slots()
        assert guard.snapshot().in_use == 0

    asyncio.run(work())


def test_nothing_tells_who_keeps_a_connection_that_its_pool_keeps():
    """Then only the frames of its caller count."""
    assert Checkout(guard_of()).held_object() is None


def test_slots_are_taken_at_all_gates_or_at_none():
    """Without waiting: the compartment has a slot, and its guard has none."""
    guard = guard_of()
    part, first, second = guard.compartment("part"), Checkout(guard), Checkout(guard)
    first.take_slots_now(guard.call_settings.gates)
    gates = part.call_settings.gates
    with pytest.raises(BulkheadFullError):
        second.take_slots_now(gates)
    assert (second.slots, part.snapshot().in_use, guard.snapshot().in_use) == ([], 0, 1)
    first.release_slots()
    second.take_slots_now(gates)
    assert [gate for gate, _ in second.slots] == list(gates)
    second.release_slots()
    assert guard.snapshot().in_use == 0


def test_in_shadow_a_slot_that_enforcing_would_refuse_ends_the_model_at_all_gates():
    guard = guard_of(mode="shadow")
    part = guard.compartment("part")
    checkouts = [Checkout(part) for _ in range(2)]
    for checkout in checkouts:
        checkout.take_slots_now(part.call_settings.gates)
    assert sum(part.snapshot().would_reject.values()) + sum(guard.snapshot().would_reject.values()) == 1
    for checkout in checkouts:
        checkout.release_slots()
    assert guard.snapshot().in_use == 0
