"""A bulkhead's calls: each gives its slot back and is counted, whatever it does."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from guardrails import Bulkhead, BulkheadFullError, deadline, remaining
from support.calls import Boom, boom, give_up


@pytest.fixture
def slots(clock):
    """A bulkhead of two that lets no caller wait, whose fast path is open."""
    slots = Bulkhead("slots", max_concurrent_calls=2, max_wait_duration=0, clock=clock)
    slots.run(nothing)
    clock.advance(1)
    return slots


def totals(guard):
    now = guard.snapshot()
    return now.in_use, now.succeeded - 1, now.failed, now.abandoned, now.late_results


def nothing():
    pass


def test_each_end_of_a_call_releases_its_slot(slots):
    """And it is counted; a coroutine is not a result."""

    async def forgotten():
        pass

    assert slots.run(lambda: "fine") == "fine"
    with pytest.raises(Boom):
        slots.run(boom)
    with pytest.raises(asyncio.CancelledError):
        slots.run(give_up)
    with pytest.raises(TypeError, match="run_async"):
        slots.run(forgotten)
    assert totals(slots) == (0, 1, 1, 2, 0)


def test_a_third_call_is_refused_by_two_slots(slots):
    def third():
        with pytest.raises(BulkheadFullError):
            slots.run(nothing)

    slots.run(lambda: slots.run(third))
    assert totals(slots) == (0, 2, 0, 0, 0)


def test_an_enclosing_deadline_counts_and_one_that_has_ended_is_skipped(slots):
    """In a context that was copied inside the block, as a background task has it."""
    with deadline(60):
        inherited = contextvars.copy_context()
        assert slots.run(remaining) == pytest.approx(60, abs=10)
    assert inherited.run(slots.run, remaining) is None


def test_a_reset_during_a_call_makes_its_result_late(slots):
    """It decides nothing any more; the slot comes back."""
    slots.run(slots.reset)
    assert totals(slots) == (0, 1, 0, 0, 1)
