"""A call that needs a slot and nothing else: its short way, and where it must take the way of all others."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from guardrails import Bulkhead, BulkheadFullError, deadline, remaining
from support.calls import Boom, boom, give_up


@pytest.fixture
def slots(clock):
    """A bulkhead of two that lets nobody wait, with its short way open."""
    slots = Bulkhead("slots", max_concurrent_calls=2, max_wait_duration=0, clock=clock)
    slots.run(nothing)
    clock.advance(1)
    return slots


def totals(guard):
    now = guard.snapshot()
    return now.in_use, now.succeeded - 1, now.failed, now.abandoned, now.late_results


class Interruption(BaseException):
    """As KeyboardInterrupt, but surely ours."""


class Eventful:
    """A lock at which something happens each time it is taken: once it is ours where a call takes it, and
    before it is where a ``with`` does; there Python lets no signal in between."""

    def __init__(self, lock, *events):
        self._lock = lock
        self._events = list(events)

    def __getattr__(self, name):
        return getattr(self._lock, name)

    def _happen(self):
        if self._events:
            self._events.pop(0)()

    def acquire(self):
        self._lock.acquire()
        self._happen()

    def __enter__(self):
        self._happen()
        self._lock.acquire()

    def __exit__(self, *_):
        self._lock.release()


def nothing():
    pass


def interrupt():
    raise Interruption


def test_whatever_a_call_does_its_slot_comes_back(slots):
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


def test_two_inside_and_the_third_is_refused(slots):
    def third():
        with pytest.raises(BulkheadFullError):
            slots.run(nothing)

    slots.run(lambda: slots.run(third))
    assert totals(slots) == (0, 2, 0, 0, 0)


def test_a_deadline_around_is_kept_and_one_that_has_ended_is_stepped_over(slots):
    """In a context that was copied inside the block, as a background task has it."""
    with deadline(60):
        inherited = contextvars.copy_context()
        assert slots.run(remaining) == pytest.approx(60, abs=10)
    assert inherited.run(slots.run, remaining) is None


def test_a_reset_while_it_runs_makes_its_result_late(slots):
    """It decides nothing any more; the slot comes back."""
    slots.run(slots.reset)
    assert totals(slots) == (0, 1, 0, 0, 1)


@pytest.mark.parametrize("leaving", [False, True])
def test_a_call_collected_as_the_lock_is_taken_ends_right_after(slots, leaving):
    """On the way in or out."""
    dropped = slots.call()
    dropped.__enter__()
    gate = slots._gate
    end = lambda: dropped.__exit__(Boom, Boom(), None)
    gate.lock = Eventful(gate.lock, *([nothing, end] if leaving else [end]))
    assert slots.run(lambda: "fine") == "fine"
    assert (totals(slots), gate.postponed) == ((0, 1, 1, 0, 0), [])


@pytest.mark.parametrize("fn", [nothing, boom])
@pytest.mark.parametrize("before", range(2))
def test_an_interrupt_as_the_lock_is_taken_loses_no_slot(slots, fn, before):
    """On the way in, on the way out, and on the way out of a failure."""
    gate = slots._gate
    gate.lock = Eventful(gate.lock, *[nothing] * before, interrupt)
    with pytest.raises(Interruption):
        slots.run(fn)
    assert not gate._in_a_step()
    assert totals(slots)[0] == 0
    assert slots.run(lambda: "fine") == "fine"
