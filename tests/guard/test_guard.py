"""A guard through its public forms, sync and async: admission, figures, events and release."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import itertools
import logging
import math
import pickle
import sys
from unittest.mock import MagicMock, Mock

import pytest

from guardrails import BreakerPolicy, Bulkhead, CircuitBreaker, CircuitOpenError, ConfigurationError, Guard
from guardrails._core.outcome import Outcome
from guardrails._guard.locked_gate import LockedGate
from guardrails._runtime.outcomes import classify
from guardrails._runtime.waiters import WakeableWaiter
from guardrails.errors import DeadlineSpentError
from guardrails.events import CallFinished, CallRejected, Event, StateChanged
from support.calls import Boom, abandon, be_refused, boom, counting, fail, play, succeed, trip, tripping
from support.flavours import SyncFlavour


def totals(guard):
    now = guard.snapshot()
    return now.admitted, now.succeeded, now.failed, now.abandoned


# --- outcomes ------------------------------------------------------------------------------------


class Cancelled(BaseException):
    """As gevent.Timeout: neither an Exception nor one Python knows."""


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.SUCCESS),
        (Boom(), Outcome.FAILURE),
        (StopIteration(), Outcome.FAILURE),
        (MemoryError(), Outcome.FAILURE),
        (TimeoutError(), Outcome.FAILURE),
        (asyncio.CancelledError(), Outcome.ABANDONED),
        (KeyboardInterrupt(), Outcome.ABANDONED),
        (SystemExit(), Outcome.ABANDONED),
        (GeneratorExit(), Outcome.ABANDONED),
        (Cancelled(), Outcome.ABANDONED),
        (DeadlineSpentError("inner", "deadline_spent"), Outcome.ABANDONED),
        (LookupError(), Outcome.SUCCESS),  # by the rule below
        (ExceptionGroup("", [LookupError(), Boom()]), Outcome.FAILURE),
        (ExceptionGroup("", [LookupError()]), Outcome.SUCCESS),
        (BaseExceptionGroup("", [asyncio.CancelledError(), KeyboardInterrupt()]), Outcome.ABANDONED),
        (BaseExceptionGroup("", [asyncio.CancelledError(), ExceptionGroup("", [Boom()])]), Outcome.FAILURE),
        (BaseExceptionGroup("", [asyncio.CancelledError(), LookupError()]), Outcome.ABANDONED),
    ],
)
def test_each_end_of_a_call_has_its_outcome(error, outcome):
    """SM8, SM15: faults count, who leaves does not, and of a group the worst leaf decides."""
    assert classify(error, lambda error: not isinstance(error, LookupError)) is outcome


def test_results_and_errors_reach_the_caller_unchanged(run, make_guard):
    """Same object, same traceback; arguments are passed on."""
    guard, error = make_guard(), Boom()

    def raising():
        raise error

    assert run(guard, lambda *args, **kwargs: (args, kwargs), 1, x=2) == ((1,), {"x": 2})
    with pytest.raises(Boom) as caught:
        run(guard, raising)
    assert caught.value is error
    assert [frame.name for frame in caught.traceback][-1] == "raising"
    abandon(run, guard)
    assert totals(guard) == (3, 1, 1, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, Cancelled, MemoryError])
def test_each_end_of_a_probe_returns_its_lease(run, make_guard, clock, error):
    """SM8: exactly once, the exception unchanged, and the circuit is never stuck half-open."""
    guard = make_guard(breaker=tripping(permitted_calls_in_half_open_state=1))
    trip(run, guard, clock, wait=5)
    finish = run.start(guard)
    be_refused(run, guard)
    finish(error=error())
    if error is not MemoryError:
        assert guard.state == "half_open"
        succeed(run, guard)
        assert guard.state == "closed"
    else:
        assert guard.state == "open"


def test_a_rule_decides_what_is_a_failure(run, make_guard):
    """An error that is none proves that the dependency answered."""
    guard = make_guard(breaker=tripping(is_failure=lambda error: not isinstance(error, Boom)))
    fail(run, guard, times=3)
    assert (guard.state, guard.snapshot().succeeded) == ("closed", 3)


def test_a_rule_may_judge_results(run, make_guard):
    """For dependencies that return their errors."""
    guard = make_guard(breaker=tripping(is_failure_result=lambda result: result == 500))
    assert run(guard, lambda: 200) == 200
    assert guard.state == "closed"
    assert run(guard, lambda: 500) == 500
    assert guard.state == "open"


class NoTruth:
    """As an array: neither true nor false."""

    def __bool__(self):
        raise ValueError("ambiguous")


@pytest.mark.parametrize("answer", [lambda _: 1 / 0, lambda _: NoTruth()])
def test_a_rule_that_raises_is_logged_and_the_default_rule_counts(run, make_guard, caplog, answer):
    """SM14: for errors failure, for results success; the call's own end is untouched and the slot free."""
    guard = make_guard(breaker=counting(10, is_failure=answer, is_failure_result=answer))
    fail(run, guard)
    succeed(run, guard)
    assert totals(guard) == (2, 1, 1, 0)
    assert guard.snapshot().in_use == 0
    assert "the is_failure rule raised" in caplog.text
    assert "the is_failure_result rule raised" in caplog.text


def test_ctrl_c_in_a_rule_keeps_no_slot(run, make_guard):
    """It comes out, and nothing is held."""

    def interrupted(error):
        raise KeyboardInterrupt

    guard = make_guard(breaker=counting(10, is_failure=interrupted))
    with pytest.raises(KeyboardInterrupt):
        run(guard, boom)
    assert totals(guard) == (1, 0, 0, 1)


def test_ctrl_c_in_a_listener_keeps_no_slot(run, make_guard):
    """Also the slots of the gates further out."""
    stop = []

    def interrupt(event):
        if stop:
            raise KeyboardInterrupt

    guard = make_guard(listeners=[interrupt])
    part = guard.compartment("part")
    finish = run.start(part)
    stop.append(1)
    with pytest.raises(KeyboardInterrupt):
        finish()
    stop.clear()
    assert (guard.snapshot().in_use, part.snapshot().in_use) == (0, 0)


@pytest.mark.parametrize("reading", range(1, 4))
def test_a_clock_that_raises_while_entering_keeps_no_slot(run, reading):
    """Whichever of the readings on the way in it is."""
    readings = itertools.count(1)

    def clock():
        if next(readings) == reading:
            raise ZeroDivisionError
        return 0

    guard = Guard("db", max_concurrent_calls=1, clock=clock, timeout=None)
    with contextlib.suppress(ZeroDivisionError):
        run.start(guard)()
    assert guard.snapshot().in_use == 0


@pytest.mark.parametrize("leaving", [False, True], ids=["entering", "leaving"])
@pytest.mark.parametrize(
    "reading", [math.nan, math.inf, -math.inf, 1e308, 10**400, "5", None], ids=lambda it: str(it)[:9]
)
def test_readings_of_a_clock_that_are_no_time_lose_no_slot(run, clock, reading, leaving):
    """W5: once it tells the time again the guard works as before, and no slot is lost."""
    guard = Guard("db", max_concurrent_calls=1, clock=clock, timeout=None)
    run(guard, clock.advance, 1)
    with contextlib.suppress(Exception):
        if not leaving:
            clock.set(reading)
        finish = run.start(guard)
        clock.set(reading)
        finish()
    clock.set(2)
    assert run(guard, lambda: "fine") == "fine"
    now = guard.snapshot()
    assert (now.state, now.in_use, now.failures, now.oldest_in_flight) == ("closed", 0, 0, None)


def test_a_call_that_the_collector_ends_in_the_middle_of_a_step_ends_after_it(run, make_guard):
    """The step under way sees nothing change beneath it: one transition, both calls counted."""
    told, lost = [], []

    def random():
        while lost:
            lost.pop()(error=Boom())  # as a generator-based caller that is collected here
        return 0.5

    guard = make_guard(breaker=tripping(), listeners=[told.append], random=random)
    lost.append(SyncFlavour().start(guard))
    fail(run, guard)
    changes = [(event.old, event.new) for event in told if isinstance(event, StateChanged)]
    assert changes == [("closed", "open")]
    assert (guard.snapshot().in_use, guard.snapshot().failed, guard.snapshot().late_results) == (0, 2, 1)


# --- refusals ------------------------------------------------------------------------------------


def test_a_full_guard_refuses(run, make_guard):
    """At once if there is no queue, and the function is not called."""
    guard = make_guard(max_concurrent_calls=2, max_wait_duration=0)
    holders = [run.start(guard) for _ in range(2)]
    error = be_refused(run, guard, "bulkhead_full")
    assert (error.guard, error.retry_after) == ("db", None)
    holders.pop()()
    succeed(run, guard)
    holders.pop()()


def test_a_refusal_is_no_evidence(run, make_guard):
    """SM18: counted by reason, and nowhere else."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0, breaker=tripping())
    finish = run.start(guard)
    for _ in range(20):
        be_refused(run, guard, "bulkhead_full")
    finish()
    now = guard.snapshot()
    assert (now.state, now.calls, now.rejected) == ("closed", 1, {"bulkhead_full": 20})


def test_an_inner_refusal_is_no_failure_of_the_outer_guard(run, make_guard):
    """SM20: each settles once, and only the inner one has refused."""
    outer, inner = make_guard("outer", breaker=tripping()), make_guard("inner")
    inner.force_open()
    with pytest.raises(CircuitOpenError) as refusal:
        run(outer, lambda: inner.run(boom))
    assert refusal.value.guard == "inner"
    assert (outer.state, totals(outer)) == ("closed", (1, 0, 0, 1))


def test_a_guard_nested_in_itself_does_not_hang(run, make_guard):
    """B5: with one slot the inner call is refused in bounded time."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0.01)
    reasons = []

    def nested():
        with pytest.raises(Exception) as refusal, guard.call():
            raise AssertionError
        reasons.append(refusal.value.reason)

    run(guard, nested)
    assert reasons == ["bulkhead_full" if run.is_async else "queue_timeout"]


def test_refusals_leave_nothing_behind(run, make_guard):
    """A new error each time, and no traceback, context or memory that grows."""
    guard = make_guard()
    guard.force_open()
    errors = [be_refused(run, guard) for _ in range(100)]
    assert len({id(error) for error in errors}) == 100
    depth = []
    for error in errors:
        trace, count = error.__traceback__, 0
        while trace:
            trace, count = trace.tb_next, count + 1
        depth.append(count)
    assert len(set(depth)) == 1
    assert errors[-1].__context__ is None


def test_a_call_is_used_once(make_guard):
    """A second entry would settle twice."""
    call = make_guard().call()
    with call, pytest.raises(RuntimeError, match="used once"):
        call.__enter__()
    with pytest.raises(RuntimeError, match="used once"):
        call.__enter__()


def test_leaving_twice_releases_one_slot(make_guard):
    """B1."""
    guard = make_guard(max_concurrent_calls=1)
    call = guard.call()
    for _ in range(2):
        guard.call().__exit__(None, None, None)
    call.__enter__()
    call.__exit__(None, None, None)
    call.__exit__(None, None, None)
    assert guard.snapshot().in_use == 0
    with guard.call():
        assert guard.snapshot().in_use == 1


# --- looking and telling -------------------------------------------------------------------------


def test_reading_the_state_changes_nothing(run, make_guard, clock):
    """SE2: neither the state nor a snapshot lets a due probe in."""
    guard = make_guard(breaker=tripping())
    trip(run, guard, clock, wait=60)
    assert (guard.state, guard.snapshot().state, guard.snapshot().retry_after) == ("open", "open", 0)
    assert repr(guard) == "<Guard 'db' open, 0/100 busy, 0 waiting>"


def test_the_oldest_call_is_shown(run, make_guard, clock):
    """SM17: with its age, as long as it hangs."""
    guard = make_guard()
    assert guard.snapshot().oldest_in_flight is None
    finish = run.start(guard)
    clock.advance(30)
    assert guard.snapshot().oldest_in_flight == 30
    finish()
    assert guard.snapshot().oldest_in_flight is None


def test_events_report_each_transition_and_refusal(run, make_guard, clock):
    """In order, numbered, with the guard's name and clock."""
    told = []
    guard = make_guard(breaker=tripping(), listeners=[told.append])
    run(guard, clock.advance, 0.5)
    fail(run, guard)
    be_refused(run, guard)
    assert [type(event) for event in told] == [CallFinished, StateChanged, CallFinished, CallRejected]
    first, change, failed, refused = told
    assert (first.outcome, first.duration, first.slow, first.at) == (Outcome.SUCCESS, 0.5, False, 0.5)
    assert (change.old, change.new, change.cause, change.retry_after) == ("closed", "open", "failure_rate", 5)
    assert failed.outcome is Outcome.FAILURE
    assert (refused.reason, refused.retry_after) == ("circuit_open", 5)
    assert [event.seq for event in told] == sorted({event.seq for event in told})
    assert {event.guard for event in told} == {"db"}


def test_a_call_refused_by_an_outer_gate_ends_without_duration(run, make_guard, clock):
    """The compartment let it in, the guard around it did not; it never ran."""
    clock.advance(1000)
    told = []
    guard = make_guard()
    part = guard.compartment("part", listeners=[told.append])
    guard.force_open()
    with pytest.raises(CircuitOpenError) as refusal:
        run(part, boom)
    assert refusal.value.guard == "db"
    assert [(event.outcome, event.duration) for event in told] == [(Outcome.ABANDONED, 0)]


def test_listeners_get_the_events_they_want(run, make_guard):
    """An event that no listener wants is not built."""
    told = []

    class Changes:
        events = (StateChanged,)

        def __call__(self, event):
            told.append(event)

    everything = []
    guard = make_guard(breaker=tripping(), listeners=[Changes(), everything.append])
    succeed(run, guard)
    fail(run, guard)
    assert [type(event) for event in told] == [StateChanged]
    assert [type(event) for event in everything] == [CallFinished, StateChanged, CallFinished]
    quiet = make_guard(breaker=tripping(), listeners=[Changes()])
    fail(run, quiet)
    assert [type(event) for event in told] == [StateChanged] * 2


class Odd:
    """A listener whose ``events`` says nothing that can be used."""

    def __init__(self, events):
        self.events = events
        self.heard = []

    def __call__(self, event):
        self.heard.append(type(event))


class Touchy(Odd):
    """One whose ``events`` cannot be read."""

    events = property(lambda self: 1 / 0, lambda self, value: None)


ODD_EVENTS = [
    5,
    "StateChanged",
    "",
    ["StateChanged"],
    [StateChanged, None],
    StateChanged,
    (int,),
    Mock(),
    MagicMock(),
    iter([StateChanged]),
]


@pytest.mark.parametrize(
    "events", ODD_EVENTS, ids=[type(events).__name__ + str(n) for n, events in enumerate(ODD_EVENTS)]
)
@pytest.mark.parametrize("kind", [Odd, Touchy])
def test_a_listener_without_events_gets_every_event(run, make_guard, clock, events, kind):
    """Nothing raises in the middle of a call."""
    listener = kind(events)
    guard = make_guard(listeners=[listener])
    run(guard, lambda: 1)
    guard.force_open()
    with pytest.raises(CircuitOpenError):
        run(guard, lambda: 1)
    assert listener.heard == [CallFinished, StateChanged, CallRejected]
    listener.heard.clear()
    breaker = CircuitBreaker(listeners=[listener], clock=clock)
    breaker.call(int)
    breaker.open()
    assert listener.heard == [CallFinished, StateChanged]


@pytest.mark.parametrize("make", [Mock, MagicMock])
def test_a_mock_can_be_a_listener(run, make_guard, make):
    """It has every attribute, ``events`` too."""
    listener = make()
    guard = make_guard(listeners=[listener])
    run(guard, lambda: 1)
    guard.force_open()
    assert [type(call.args[0]) for call in listener.call_args_list] == [CallFinished, StateChanged]


@pytest.mark.parametrize(
    ("events", "heard"),
    [
        ((), []),
        ({StateChanged}, [StateChanged]),
        ([CallFinished, StateChanged], [CallFinished, StateChanged]),
        ({CallFinished: None}.keys(), [CallFinished]),
        ((Event,), [CallFinished, StateChanged]),
    ],
)
def test_events_of_a_listener_may_be_any_collection_of_classes(run, make_guard, events, heard):
    """A base class stands for all that derive from it."""
    listener = Odd(events)
    guard = make_guard(listeners=[listener])
    run(guard, lambda: 1)
    guard.force_open()
    assert listener.heard == heard


def test_a_listener_may_use_the_guard_and_raise(run, make_guard, caplog):
    """SM12: it raises, looks, resets, calls the guard: no deadlock, and the call's end is its own."""
    told = []

    def meddle(event):
        told.append(event)
        guard.snapshot()
        if len(told) < 3:
            guard.run(lambda: None)
            guard.reset()
        raise ZeroDivisionError

    guard = make_guard(breaker=tripping(), listeners=[meddle])
    play(run, guard, "SF")
    assert "a listener of guard 'db' raised" in caplog.text


def test_transitions_are_logged(run, make_guard, caplog):
    """Opening is a warning, and so is that it would have opened, and what is done by hand."""
    caplog.set_level(logging.INFO, "guardrails")
    guard = make_guard(breaker=tripping())
    fail(run, guard)
    guard.reset()
    guard.metrics_only()
    fail(run, guard)
    guard.disable()
    guard.force_open()
    guard.reset()
    failed = "1 of 1 calls failed, the last with Boom"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            f"circuit 'db': closed -> open (failure_rate): {failed}; refusing for 5 s",
        ),
        ("WARNING", "circuit 'db': open -> closed (manual)"),
        ("WARNING", "circuit 'db': closed -> metrics_only (manual)"),
        (
            "WARNING",
            f"circuit 'db' would have opened (failure_rate): {failed}",
        ),
        ("WARNING", "circuit 'db': metrics_only -> disabled (manual)"),
        ("WARNING", "circuit 'db': disabled -> forced_open (manual)"),
        ("WARNING", "circuit 'db': forced_open -> closed (manual)"),
    ]


def test_waiters_are_woken_before_listeners_are_called(make_guard):
    """A slow listener does not delay a waiter that was granted a slot."""
    order = []

    class Noting(WakeableWaiter):
        __slots__ = ()

        def wake(self):
            order.append("woken")
            return True

    def listen(event):
        order.append(type(event).__name__)

    listen.events = (StateChanged,)
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=1, breaker=tripping(), listeners=[listen])
    call = guard.call()
    call.__enter__()
    gate = guard._gate
    assert gate.step(gate.core.enter, Noting()) is None
    call.__exit__(Boom, Boom(), None)
    assert order == ["woken", "StateChanged"]


# --- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["force_open", "disable", "metrics_only", "reset"])
def test_a_manual_change_of_the_circuit_makes_calls_in_flight_late(run, make_guard, clock, state):
    """SM13: they finish, give everything back, and decide nothing."""
    guard = make_guard(breaker=tripping())
    closed = run.start(guard)
    trip(run, guard, clock, wait=5)
    probe = run.start(guard)
    getattr(guard, state)()
    closed(error=Boom())
    probe(error=Boom())
    now = guard.snapshot()
    assert (now.late_results, now.in_use, now.calls) == (2, 0, 0)
    assert now.state == {"force_open": "forced_open", "disable": "disabled", "reset": "closed"}.get(
        state, state
    )


def test_a_guard_without_a_breaker_only_holds_slots(run, make_guard):
    """Nothing opens it but a hand."""
    guard = make_guard(breaker=None)
    fail(run, guard, times=50)
    assert (guard.state, guard.snapshot().failed) == ("disabled", 50)
    guard.force_open()
    be_refused(run, guard)
    guard.reset()
    assert guard.state == "disabled"


# --- slots ---------------------------------------------------------------------------------------


def test_resize_at_run_time(run, make_guard):
    """B7: shrinking waits for no call, growing admits more."""
    guard = make_guard(max_concurrent_calls=3, max_wait_duration=0)
    holders = [run.start(guard) for _ in range(3)]
    guard.resize(1)
    holders.pop()()
    be_refused(run, guard, "bulkhead_full")
    guard.resize(3)
    holders.append(run.start(guard))
    for finish in holders:
        finish()
    with pytest.raises(ConfigurationError, match="max_concurrent_calls must be"):
        guard.resize(0)


def by(error):
    """Who refused: the names of the guard and its compartment."""
    return error.guard, error.compartment


def test_compartments_share_the_slots_of_their_guard(run, make_guard):
    """A call through one needs a slot in both and is evidence in both; by default 70 %, at least one."""
    guard = make_guard(max_concurrent_calls=3, max_wait_duration=0, breaker=counting(100))
    part = guard.compartment("part")
    assert part.snapshot().max_concurrent_calls == 2
    holders = [run.start(part) for _ in range(2)]
    assert by(be_refused(run, part, "bulkhead_full")) == ("db", "part")
    holders.append(run.start(guard))
    assert by(be_refused(run, guard, "bulkhead_full")) == ("db", None)
    holders.pop(0)()
    holders.append(run.start(guard))
    refusal = be_refused(run, part, "bulkhead_full")
    assert by(refusal) == ("db", None)
    assert part.snapshot().in_use == 1, "what it held in the compartment is given back"
    for finish in holders:
        finish()
    fail(run, part)
    assert (guard.snapshot().failures, part.snapshot().failures) == (1, 1)


def test_a_compartments_circuit_is_its_own(run, make_guard):
    """Its failures sink it, and not the guard, whose other calls are well."""
    guard = make_guard(breaker=counting(100, minimum_number_of_calls=5))
    part = guard.compartment("part", breaker=tripping())
    succeed(run, guard, times=20)
    fail(run, part)
    assert (guard.state, part.state) == ("closed", "open")
    assert by(be_refused(run, part)) == ("db", "part")
    succeed(run, guard)


def test_a_known_name_returns_the_same_compartment(make_guard):
    """Asked for again it is the same; given options again it is an error."""
    guard = make_guard(max_concurrent_calls=10)
    part = guard.compartment("part")
    assert guard.compartment("part") is part
    assert guard.compartments == (part,)
    with pytest.raises(ConfigurationError, match="has a compartment 'part' already"):
        guard.compartment("part", timeout=1)
    for wrong in (0, 11, True, "3"):
        with pytest.raises(ConfigurationError, match="max_concurrent_calls must be"):
            guard.compartment("other", max_concurrent_calls=wrong)
    with pytest.raises(ConfigurationError, match=r"no option 'timout'; did you mean 'timeout'"):
        guard.compartment("other", timout=1)
    fixed = guard.compartment("fixed", max_concurrent_calls=4)
    guard.resize(20)
    assert (part.snapshot().max_concurrent_calls, fixed.snapshot().max_concurrent_calls) == (14, 4)
    with pytest.raises(ConfigurationError, match="from 1 to 20"):
        part.resize(21)
    with pytest.raises(ConfigurationError, match="not attached"):
        guard.detach()


def test_two_threads_that_make_the_same_compartment_get_the_same(make_guard):
    """As two threads may; here the second comes while the first one's listeners are being read."""
    guard = make_guard()
    made = []

    def listeners():
        made.append(guard.compartment("part"))
        yield made.append

    made.append(guard.compartment("part", listeners=listeners()))
    assert made[0] is made[1]
    assert guard.compartments == (made[0],)


def test_a_bulkhead_has_no_circuit_and_no_timeout(run, clock):
    """R19: no circuit, no timeout; by default no queue."""
    bulkhead = Bulkhead("reports", 2, clock=clock)
    holders = [run.start(bulkhead) for _ in range(2)]
    assert be_refused(run, bulkhead, "bulkhead_full").guard == "reports"
    for finish in holders:
        finish()
    fail(run, bulkhead, times=100)
    run(bulkhead, clock.advance, 10**6)
    assert (bulkhead.state, bulkhead.timeout, bulkhead.snapshot().in_use) == ("disabled", None, 0)
    assert isinstance(bulkhead, Guard)
    with pytest.raises(ConfigurationError, match="max_wait_duration must be"):
        Bulkhead("reports", 2, -1)


def test_guards_are_small():
    """A guard with default settings takes less than 8 KiB with all that belongs to it alone."""
    guards = [Guard(f"guard {number}", max_concurrent_calls=10) for number in range(3)]
    assert sum(map(sys.getsizeof, _belongings(guards[1]))) < 8192


def _belongings(root):
    seen, todo = {}, [root]
    while todo:
        thing = todo.pop()
        kept = isinstance(thing, dict | list | tuple | set) or type(thing).__module__.startswith("guardrails")
        if id(thing) in seen or isinstance(thing, type) or not kept:
            continue
        seen[id(thing)] = thing
        todo.extend(gc.get_referents(thing))
    return seen.values()


def test_settings_of_two_guards_are_their_own():
    """The default policy is shared and frozen; nothing else is."""
    with pytest.raises(AttributeError):
        BreakerPolicy().minimum_number_of_calls = 3


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_guard_cannot_be_copied(make_guard, duplicate):
    """P2: slots and circuit belong to one process; the error says what to do instead."""
    with pytest.raises(TypeError, match="guard 'db' cannot be pickled or copied: make one in each process"):
        duplicate(make_guard())


def test_a_release_that_always_raises_ends(monkeypatch, make_guard):
    """The slot cannot be saved then; but the error comes out, and it is tried twice, not for ever."""
    guard = make_guard()
    tries = []

    def broken(self, ticket, outcome, slots):
        tries.append(ticket)
        raise ZeroDivisionError

    call = guard.call()
    call.__enter__()
    with monkeypatch.context() as patched:
        patched.setattr(LockedGate, "end", broken)
        with pytest.raises(ZeroDivisionError):
            call.leave(Boom())
    assert len(tries) <= 4
    guard._gate.core.drop_calls_and_waiters()
