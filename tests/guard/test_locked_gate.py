"""A pool's way through a guard's gate, without the pool: checkouts, statements, and what comes in between."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from guardrails import BulkheadFullError, CircuitOpenError, Guard
from guardrails._core.outcome import Outcome
from guardrails.events import CallFinished, StateChanged
from support.calls import Boom, boom, fail, trip, tripping

LONG = 30


def by_a_thread(gate):
    return gate.check_out(None)


def behind_a_greenlet(gate):
    return in_a_loop(lambda: gate.check_out(waiting_while(lambda: pytest.fail("it waits"))))


def by_a_task(gate):
    return asyncio.run(gate.check_out_async())


def without_waiting(gate):
    return gate.check_out_now()


WAYS = [by_a_thread, behind_a_greenlet, by_a_task, without_waiting]


def in_a_loop(fn):
    async def main():
        return fn()

    return asyncio.run(main())


def waiting_while(others):
    """Runs a coroutine to its end as SQLAlchemy's greenlet does: others go on while it waits."""

    def wait(coroutine):
        coroutine.send(None)
        others()
        with pytest.raises(StopIteration) as ended:
            coroutine.send(None)
        return ended.value.value

    return wait


def figures(guard):
    now = guard.snapshot()
    return now.in_use, now.succeeded, now.failed, now.abandoned


# --- checkouts and statements --------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_checkout_holds_a_slot_and_each_statement_on_it_is_evidence(make_guard, way):
    """For each kind of checkout; twice, as the first one takes the slow path."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0)
    gate = guard._gate
    for _ in range(2):
        slot = way(gate)
        with pytest.raises(BulkheadFullError):
            way(gate)
        for outcome in (Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED):
            gate.end(gate.begin(slot), outcome)
        gate.check_in(slot)
        gate.check_in(slot)  # twice gives one slot back
    assert figures(guard) == (0, 2, 2, 2)


@pytest.mark.parametrize("way", WAYS)
def test_an_open_circuit_hands_out_no_connection(run, make_guard, way):
    """It is refused before there is a connection."""
    guard = make_guard(breaker=tripping())
    trip(run, guard)
    with pytest.raises(CircuitOpenError):
        way(guard._gate)
    assert figures(guard)[0] == 0


def test_a_checkout_behind_a_greenlet_waits_in_the_queue(make_guard):
    """The loop goes on meanwhile, and the slot given back there is handed over."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=LONG)
    gate = guard._gate

    def main():
        first = gate.check_out(None)
        second = gate.check_out(waiting_while(lambda: gate.check_in(first)))
        assert guard.snapshot().in_use == 1
        gate.check_in(second)

    in_a_loop(main)
    assert (guard.snapshot().in_use, guard.snapshot().admitted) == (0, 2)


def test_the_end_of_each_statement_is_reported(make_guard):
    """The successes, too."""
    told = []
    gate = make_guard(listeners=[told.append])._gate
    slot = gate.check_out(None)
    for outcome in (Outcome.SUCCESS, Outcome.FAILURE):
        gate.end(gate.begin(slot), outcome)
    gate.check_in(slot)
    assert [event.outcome for event in told if isinstance(event, CallFinished)] == [
        Outcome.SUCCESS,
        Outcome.FAILURE,
    ]


# --- what the garbage collector ends in the middle of a step -------------------------------------


class Collector:
    """A clock that ends dropped calls each time it is read, as a collection at that moment would."""

    def __init__(self):
        self.dropped = []
        self.broken = False

    def __call__(self):
        dropped, self.dropped = self.dropped, []
        for end in dropped:
            end()
        if self.broken:
            raise ZeroDivisionError
        return 0.0


@pytest.fixture
def collector():
    return Collector()


@pytest.fixture
def guard(collector):
    """A guard on that clock, with its fast paths open."""
    guard = Guard("db", max_concurrent_calls=4, timeout=None, clock=collector, breaker=tripping())
    guard.run(int)
    return guard


STEPS = {
    "check out": lambda gate, slot: gate.check_in(gate.check_out(None)),
    "check out in a task": lambda gate, slot: gate.check_in(by_a_task(gate)),
    "look": lambda gate, slot: gate.preview(),
    "check in": lambda gate, slot: gate.check_in(slot),
    "begin": lambda gate, slot: gate.end(gate.begin(slot), Outcome.ABANDONED),
    "end": lambda gate, slot: gate.end(gate.begin(slot), Outcome.SUCCESS),
}


@pytest.mark.parametrize("reading", range(2))
@pytest.mark.parametrize("step", STEPS)
def test_a_statement_collected_as_a_quick_step_reads_the_clock_ends_before_it(
    guard, collector, step, reading
):
    """The fast path reads the clock first, so the step takes the failure into account."""
    gate = guard._gate
    slot = gate.check_out(None)
    ticket = gate.begin(slot)

    def collected():
        if reading == 0:
            gate.end(ticket, Outcome.FAILURE)
        else:
            collector.dropped.append(lambda: gate.end(ticket, Outcome.FAILURE))

    collector.dropped.append(collected)
    with contextlib.suppress(CircuitOpenError):
        STEPS[step](gate, slot)
    gate.check_in(slot)
    assert (guard.state, guard.snapshot().failed, gate.deferred) == ("open", 1, [])
    assert guard.snapshot().in_use == 0


def test_a_call_collected_while_a_fast_call_reads_the_clock_ends_before_it(run, guard, collector):
    """So that the circuit it opens refuses the call."""
    dropped = guard.call()
    dropped.__enter__()
    collector.dropped.append(lambda: dropped.__exit__(Boom, Boom(), None))
    with pytest.raises(CircuitOpenError):
        run(guard, lambda: "fine")
    assert (guard.state, guard.snapshot().in_use, guard.snapshot().failed) == ("open", 0, 1)


def test_calls_collected_while_a_call_ends_end_right_after_it(run, guard, collector):
    """A failure that was deferred opens the circuit at the end of the step."""
    dropped = guard.call()
    dropped.__enter__()
    run(guard, lambda: collector.dropped.append(lambda: dropped.__exit__(Boom, Boom(), None)))
    assert (guard.state, guard.snapshot().in_use, guard.snapshot().failed) == ("open", 0, 1)


def test_a_guard_with_compartments_is_collected_in_the_middle_of_a_step(guard, collector):
    """A failed statement, its connection, and a task that waited: put off together, made in their order."""
    gate = guard._gate
    slots = [gate.check_out(None) for _ in range(4)]
    ticket = gate.begin(slots[0])

    def main():
        waiting = gate.check_out_async(budget=LONG)
        waiting.send(None)
        assert guard.snapshot().waiting == 1
        collector.dropped += [
            lambda: gate.end(ticket, Outcome.FAILURE),
            lambda: gate.check_in(slots[0]),
            waiting.close,
        ]
        gate.step(gate.core.refresh)

    in_a_loop(main)
    assert (guard.state, guard.snapshot().waiting, guard.snapshot().in_use) == ("open", 0, 3)
    for slot in slots:
        gate.check_in(slot)
    assert guard.snapshot().in_use == 0


def test_a_signal_handler_changes_the_guard_in_the_middle_of_a_step(guard, collector):
    """Its own step is whole, and so is the one that goes on."""
    collector.dropped += [lambda: guard.resize(2), lambda: guard.run(int)]
    guard.disable()
    assert (guard.state, guard.snapshot().max_concurrent_calls, guard.snapshot().in_use) == ("disabled", 2, 0)
    gate = guard._gate
    slots = [gate.check_out(None) for _ in range(2)]
    with pytest.raises(BulkheadFullError):
        gate.check_out_now()
    for slot in slots:
        gate.check_in(slot)


# --- what breaks in the middle of a step ---------------------------------------------------------


def test_a_clock_that_raises_keeps_no_connection_and_no_statement(guard, collector, caplog):
    """Both are released; the time of the last reading counts."""
    gate = guard._gate
    slot = gate.check_out(None)
    ticket = gate.begin(slot)
    collector.broken = True
    gate.end(ticket, Outcome.SUCCESS)
    gate.check_in(slot)
    collector.broken = False
    assert figures(guard) == (0, 2, 0, 0)
    assert "the clock of guard 'db' raised" in caplog.text


def test_a_clock_that_raises_while_leaving_keeps_no_slot(run, guard, collector):
    """Its error is the caller's, as the call may have come back late; the lock is free again."""

    def work():
        collector.broken = True

    with pytest.raises(ZeroDivisionError):
        run(guard, work)
    collector.broken = False
    assert figures(guard) == (0, 1, 0, 1)
    assert run(guard, lambda: "fine") == "fine"


class Interruption(BaseException):
    """As KeyboardInterrupt, but surely ours."""


@pytest.mark.parametrize("leaving", [False, True])
def test_ctrl_c_in_a_listener_right_after_a_fast_step_keeps_no_slot(run, collector, leaving):
    """Deferred moves are reported after the step, when the lock is released."""

    def interrupt(event):
        if isinstance(event, StateChanged):
            raise Interruption

    interrupt.events = (StateChanged,)
    guard = Guard(
        "db", max_concurrent_calls=4, timeout=None, clock=collector, breaker=tripping(), listeners=[interrupt]
    )
    run(guard, int)
    dropped = guard.call()
    dropped.__enter__()

    def drop():
        collector.dropped.append(lambda: dropped.__exit__(Boom, Boom(), None))

    if not leaving:
        drop()
    with pytest.raises(Interruption):
        run(guard, drop if leaving else boom)
    assert (guard.snapshot().in_use, guard.state) == (0, "open")
    assert not guard._gate._in_step()


def test_a_gate_locked_for_a_fork_waits_for_the_step_in_progress(run, guard):
    """And afterwards everything is as before."""
    assert guard._gate.pause(LONG)
    guard._gate.unpause()
    fail(run, guard)
    assert guard.state == "open"


def test_a_child_has_one_new_lock_for_a_guard_and_its_compartments(make_guard):
    guard = make_guard()
    _, above = guard.compartment("part").call_settings.gates
    gate, lock = guard.call_settings.gates[0], guard.call_settings.gates[0].lock
    assert above.lock is lock
    gate.reset_in_child()
    assert above.lock is gate.lock is not lock
