"""The fast paths without a lock: nothing comes between the look and the last change; and what if it did."""

from __future__ import annotations

import ast
import contextlib
import dis
import inspect
import random
import re
import sys
import textwrap
import threading
import time

import pytest

from guardrails import BreakerPolicy, Bulkhead, Guard, RejectedError, deadline, guarded
from guardrails._core import gate as gate_module
from guardrails._core.breaker import Breaker
from guardrails._core.outcome import Outcome
from guardrails._guard import decorator as decorator_module
from guardrails._guard import fast_path
from guardrails._guard import guard as guard_module
from guardrails._guard.fast_path import FastCall, FastGate
from guardrails._runtime.scope import RequestScope, close, current, enter
from guardrails._util.interpreter import threads_take_turns
from support.calls import Boom, boom, tripping
from support.interrupts import switched_everywhere

LINES = [
    FastGate.begin,
    FastGate.end,
    FastGate.try_enter_fast,
    FastGate._take_reserved_slot,
    FastGate.check_in,
    FastGate.refuse_if_open,
    FastGate.refuse_if_full,
    FastCall.try_enter_fast,
    FastCall.try_exit_fast,
]
LOOKS = {"fast_enter_until", "fast_leave_until", "fast_refuse_until", "admits_until"}
CHANGED = {
    *("abandoned", "admitted", "bad_calls", "closed", "fast_full_refusals", "fast_refusals", "last"),
    *("last_success_at", "last_ticket", "pending_failures", "pending_successes", "succeeded", "taken"),
    "ticket",
}
STRAYS = ("CALL", "BUILD", "BACKWARD", "ITER", "SEND", "YIELD", "IMPORT", "FORMAT", "LIST", "SPECIAL")


def following(steps):
    """The places after each instruction, as control flows without an exception."""
    places = {step.offset: at for at, step in enumerate(steps)}
    for at, step in enumerate(steps):
        ends = step.opname.startswith(("RETURN", "RAISE", "RERAISE"))
        goes_on = not (ends or step.opname.startswith("JUMP"))
        jumps = [places[step.argval]] if "JUMP" in step.opname or step.opname == "FOR_ITER" else []
        yield [at + 1] * goes_on + jumps


def strays(function):
    """The instructions between a fast path's check and its last change at which other code may run."""
    steps = list(dis.get_instructions(function))
    after = list(following(steps))
    look = next(at for at, step in enumerate(steps) if step.opname == "LOAD_ATTR" and step.argval in LOOKS)
    section, new = {look}, [look]
    while new:
        new = [each for at in new for each in after[at] if each not in section]
        section.update(new)
    changes = {
        at
        for at in section
        if (steps[at].opname == "STORE_ATTR" and steps[at].argval in CHANGED)
        or steps[at].opname in {"STORE_SUBSCR", "DELETE_SUBSCR"}
    }
    assert changes
    leading = set(changes)
    while more := {at for at in section - leading if leading.intersection(after[at])}:
        leading |= more
    return [steps[at].opname for at in leading if any(stray in steps[at].opname for stray in STRAYS)]


def with_stray_call(function, line, instead):
    """A fast path with one line written so that C code is called in the middle of it."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(f" {line}\n") == 1
    source = source.replace(f" {line}\n", f" {instead}\n")
    code = compile(f"from __future__ import annotations\n{source}", fast_path.__file__, "exec")
    made = {}
    exec(code, vars(fast_path), made)
    return made[function.__name__]


STRAY_CALLS = [
    (FastGate, "begin", "bulkhead.taken += 1", "bulkhead.taken = bulkhead.taken + max(1, slots)"),
    (
        FastGate,
        "end",
        "core.bulkhead.taken -= 1",
        "core.bulkhead.taken = core.bulkhead.taken - max(1, slots)",
    ),
    (FastGate, "try_enter_fast", "bulkhead.taken += 1", "bulkhead.taken = bulkhead.taken + max(1, 1)"),
    (
        FastGate,
        "check_in",
        "core.bulkhead.taken -= 1",
        "core.bulkhead.taken = core.bulkhead.taken - max(1, 1)",
    ),
    (FastCall, "try_enter_fast", "bulkhead.taken += 1", "bulkhead.taken = bulkhead.taken + max(1, 1)"),
    (
        FastCall,
        "try_exit_fast",
        "breaker.pending_successes += 1",
        "breaker.pending_successes = breaker.pending_successes + max(1, 1)",
    ),
]


@pytest.mark.parametrize("function", LINES, ids=lambda function: function.__qualname__)
def test_a_fast_path_has_no_call_no_backward_jump_and_no_new_object_between_check_and_last_change(function):
    """There alone CPython hands the interpreter on, or runs a handler or the collector."""
    assert strays(function) == []


def test_pending_results_are_added_without_a_call_in_the_middle():
    """A snapshot does it while the fast paths are open."""
    steps = list(dis.get_instructions(Breaker._flush_results))
    names = [step.argval if step.opname in {"LOAD_ATTR", "STORE_ATTR"} else None for step in steps]
    first = max(at for at, step in enumerate(steps) if step.opname == "BUILD_MAP") + 1
    last = names.index("failed", names.index("failure_margin", first))
    section = [step.opname for step in steps[first:last]]
    assert not [name for name in section if any(stray in name for stray in STRAYS)]


@pytest.mark.parametrize(("owner", "name", "line", "instead"), STRAY_CALLS)
def test_a_stray_call_in_a_fast_path_is_seen_in_its_bytecode(owner, name, line, instead):
    """So the test above can fail."""
    assert any("CALL" in found for found in strays(with_stray_call(getattr(owner, name), line, instead)))


# --- another thread at every place where there can be one ----------------------------------------


POLICY = BreakerPolicy(minimum_number_of_calls=1, slow_call_duration_threshold=60, open_jitter=0)


def warm():
    """A guard of three slots whose fast paths are open, with one checkout and one call inside."""
    guard = Guard("db", max_concurrent_calls=3, max_wait_duration=0, timeout=None, breaker=POLICY)
    guard.run(int)
    guard.compartment("part", max_concurrent_calls=2).run(int)
    gate = guard._gate
    slot, ticket = gate.check_out(None), gate.begin(0, 1)
    assert slot
    assert ticket
    return guard, slot, ticket


def in_use(guard):
    core = guard._gate.core
    return core.bulkhead.taken, len(core.breaker.in_flight) + len(core.breaker.overdue), len(core.checkouts)


def run_a_call(guard, slot, ticket):
    with contextlib.suppress(RejectedError):
        guard.run(int)


def run_a_failing_call(guard, slot, ticket):
    with contextlib.suppress(RejectedError, Boom):
        guard.run(boom)


def end_the_call(guard, slot, ticket):
    guard._gate.end(ticket, Outcome.SUCCESS, 1)


def fail_the_call(guard, slot, ticket):
    guard._gate.end(ticket, Outcome.FAILURE, 1)


def return_the_checkout(guard, slot, ticket):
    guard._gate.check_in(slot)


def check_out_and_in(guard, slot, ticket):
    with contextlib.suppress(RejectedError):
        guard._gate.check_in(guard._gate.check_out(None))


def make_a_statement(guard, slot, ticket):
    guard._gate.end(guard._gate.begin(slot), Outcome.SUCCESS, 0, slot)


def run_through_a_compartment(guard, slot, ticket):
    with contextlib.suppress(RejectedError):
        guard.compartments[0].run(int)


def fill(guard, slot, ticket):
    """Takes all slots, and gives them back later."""
    gate, taken = guard._gate, []
    with contextlib.suppress(RejectedError):
        while True:
            taken.append(gate.check_out(None))
    assert gate.core.bulkhead.taken <= 3, "more are inside than there are slots"
    for each in taken:
        gate.check_in(each)


def disable(guard, slot, ticket):
    guard.disable()


MOVES = [
    *(run_a_call, run_a_failing_call, end_the_call, fail_the_call, return_the_checkout, check_out_and_in),
    *(make_a_statement, fill, disable, run_through_a_compartment),
]


def assert_books_are_right(move, other):
    """Runs one move, and the other at every place of it; then all calls end and no figure may remain."""
    places, made = 0, []

    def make():
        made.append(warm())
        return made[-1]

    try:
        for where, (guard, slot, ticket) in switched_everywhere(
            make, lambda thing: move(*thing), lambda thing: other(*thing)
        ):
            places += 1
            end_the_call(guard, slot, ticket)
            return_the_checkout(guard, slot, ticket)
            assert in_use(guard) == (0, 0, 0), where
            breaker = guard._gate.core.breaker
            assert (breaker.good_since, breaker.workload_by_ticket) == ({}, {}), where
            now = guard.snapshot()
            assert now.succeeded + now.failed + now.abandoned == guard._gate.core.breaker.last_ticket, where
            if make_a_statement not in (move, other) and disable not in (move, other):
                assert now.calls == now.succeeded + now.failed, where
    finally:
        for guard, *_ in made:
            guard._gate.core.drop_calls_and_waiters()
    return places


@pytest.mark.sampled(40)
@pytest.mark.parametrize("other", MOVES)
@pytest.mark.parametrize("move", MOVES)
def test_another_thread_at_any_place_of_a_move_keeps_the_figures_right(move, other):
    """No slot is lost or given back twice, no call is counted twice or stays under way."""
    assert assert_books_are_right(move, other) >= 1


@pytest.mark.parametrize(("owner", "name", "line", "instead"), STRAY_CALLS)
def test_another_thread_in_a_fast_path_with_a_stray_call_makes_the_figures_wrong(
    monkeypatch, owner, name, line, instead
):
    """So the test above can fail."""
    monkeypatch.setattr(owner, name, with_stray_call(getattr(owner, name), line, instead))
    with pytest.raises(AssertionError):
        for move in (
            run_a_call,
            run_through_a_compartment,
            check_out_and_in,
            end_the_call,
            return_the_checkout,
        ):
            for other in (return_the_checkout, end_the_call):
                assert_books_are_right(move, other)


# --- storms --------------------------------------------------------------------------------------


@contextlib.contextmanager
def switching_fast():
    """Threads are switched every microsecond."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def storm(calls, threads=8):  # noqa: C901 - all kinds of calls
    """Calls of all kinds on a guard with a compartment, whose circuits open; returns what must be nothing."""
    policy = BreakerPolicy(
        sliding_window_type="count",
        sliding_window_size=100,
        minimum_number_of_calls=20,
        failure_rate_threshold=0.3,
        wait_duration_in_open_state=0.002,
    )
    guard = Guard("db", max_concurrent_calls=12, max_wait_duration=0.001, breaker=policy)
    part = guard.compartment("part", max_concurrent_calls=8)
    faults = []

    def work(seed):
        dice, gate = random.Random(seed), guard._gate
        for number in range(calls // threads):
            if number % 50 == 0:
                guard.snapshot()
            kind = 0.72 if number % 500 < 50 else dice.random()
            try:
                if kind < 0.5:
                    guard.run(int)
                elif kind < 0.7:
                    part.run(int)
                elif kind < 0.75:
                    guard.run(boom)
                elif kind < 0.95:
                    slot = gate.check_out(None)
                    try:
                        gate.end(gate.begin(slot), Outcome.SUCCESS)
                    finally:
                        gate.check_in(slot)
                else:
                    with guard.call(0.5):
                        pass
            except (RejectedError, Boom):
                pass
            except BaseException as error:
                faults.append(error)
                return

    with switching_fast():
        crowd = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
        for each in crowd:
            each.start()
        for each in crowd:
            each.join()
    for one in (guard, part):
        if in_use(one) != (0, 0, 0):
            faults.append((one.name, in_use(one)))
        one._gate.core.drop_calls_and_waiters()
    return faults, guard.snapshot()


@pytest.mark.parametrize(
    "calls",
    [8000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)])],
)
def test_a_storm_of_threads_loses_no_slot(calls):
    """Eight threads, switched every microsecond, while circuits open and close."""
    faults, now = storm(calls)
    assert faults == []
    assert now.succeeded > 0
    assert now.failed > 0


def test_a_storm_of_threads_finds_a_stray_call(monkeypatch):
    """So the storm can fail."""
    stray = with_stray_call(FastGate.check_in, *STRAY_CALLS[3][2:])
    monkeypatch.setattr(FastGate, "check_in", stray)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if storm(8000)[0]:
            return
    pytest.fail("nothing was found out")


def test_a_tracer_that_yields_at_each_line_loses_no_slot():
    """Each number is read and written in a line of its own."""
    guard = Guard("db", max_concurrent_calls=8, timeout=None)
    guard.run(int)

    def trace(frame, event, arg):
        if frame.f_code.co_filename == fast_path.__file__:
            time.sleep(0)
            return trace
        return None

    def work():
        tracing = sys.gettrace()
        sys.settrace(trace)
        try:
            for _ in range(150):
                with contextlib.suppress(RejectedError):
                    guard.run(int)
        finally:
            sys.settrace(tracing)

    with switching_fast():
        crowd = [threading.Thread(target=work) for _ in range(4)]
        for each in crowd:
            each.start()
        for each in crowd:
            each.join()
    assert in_use(guard) == (0, 0, 0)
    assert guard.snapshot().succeeded == 601


# --- where they are closed -----------------------------------------------------------------------


def closed(core):
    return max(
        core.fast_enter_until, core.fast_leave_until, core.fast_refuse_until, core.admits_until
    ) == float("-inf")


@pytest.mark.parametrize(
    ("name", "flags", "enabled", "expected"),
    [
        ("cpython", "", None, True),
        ("cpython", "", True, True),
        ("cpython", "t", False, False),
        ("cpython", "t", True, False),
        ("cpython", "", False, False),
        ("pypy", "", None, False),
    ],
)
def test_the_fast_paths_need_an_interpreter_lock(monkeypatch, name, flags, enabled, expected):
    """On a free-threaded build they are closed even while its lock is on."""
    monkeypatch.setattr(sys, "implementation", type("Implementation", (), {"name": name}))
    monkeypatch.setattr(sys, "abiflags", flags, raising=False)
    monkeypatch.delattr(sys, "_is_gil_enabled", raising=False)
    if enabled is not None:
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: enabled, raising=False)
    assert threads_take_turns() is expected


@pytest.mark.parametrize("make", [lambda: Guard("db", max_concurrent_calls=2), lambda: Bulkhead("db", 2)])
def test_without_an_interpreter_lock_every_call_takes_the_lock(monkeypatch, make):
    """And does the same."""
    monkeypatch.setattr(gate_module, "LOCK_FREE", False)
    guard = make()
    for _ in range(3):
        assert guard.run(lambda: closed(guard._gate.core))
        with contextlib.suppress(Boom):
            guard.run(boom)
    gate = guard._gate
    slot = gate.check_out(None)
    gate.end(gate.begin(slot), Outcome.SUCCESS)
    gate.check_in(slot)
    assert closed(gate.core)
    now = guard.snapshot()
    assert (now.in_use, now.succeeded, now.failed) == (0, 4, 3)


class Odd(float):
    """A reading whose comparison runs Python code."""

    def __lt__(self, other):
        return float(self) < float(other)


def test_a_clock_with_readings_of_another_type_closes_the_fast_paths():
    guard = Guard("db", max_concurrent_calls=2, timeout=None, clock=lambda: Odd(time.monotonic()))
    for _ in range(3):
        guard.run(int)
        assert closed(guard._gate.core)
    assert guard.snapshot().succeeded == 3


def test_an_open_circuit_is_seen_by_the_fast_path_at_once():
    """A move of another thread closes the fast paths before it changes anything."""
    guard = Guard("db", max_concurrent_calls=2, breaker=tripping())
    guard.run(int)
    seen = []

    def listen(now):
        seen.append(closed(guard._gate.core))
        return guard._gate.core.refresh(now)

    guard._gate.step(listen)
    assert seen == [True]
    assert not closed(guard._gate.core)


# --- what it takes -------------------------------------------------------------------------------


def frames_of(fn):
    """The functions of the library that a call runs, in their order."""
    names = []

    def profile(frame, event, arg):
        if event == "call" and frame.f_globals.get("__name__", "").startswith("guardrails."):
            names.append(frame.f_code.co_name)

    fn()
    profiling = sys.getprofile()
    sys.setprofile(profile)
    try:
        fn()
    finally:
        sys.setprofile(profiling)
    return names


def test_a_call_on_the_fast_path_runs_three_functions(monkeypatch):
    """Its own, one in and one out; with a deadline around it, the check of that as well."""
    monkeypatch.setattr(fast_path, "ranked", set())  # no call of this process has had a criticality
    guard = Guard("db", max_concurrent_calls=2)
    assert frames_of(lambda: guard.run(int)) == ["run", "try_enter_fast", "try_exit_fast"]
    assert frames_of(guarded(guard)(answer)) == ["wrapper", "try_enter_fast", "try_exit_fast"]
    with deadline(5):
        assert len(frames_of(lambda: guard.run(int))) <= 6
    with request():
        assert len(frames_of(lambda: guard.run(int))) <= 6


def test_a_statement_and_a_checkout_run_a_function_each_way():
    gate = Guard("db", max_concurrent_calls=2)._gate
    assert frames_of(lambda: gate.end(gate.begin(0), Outcome.SUCCESS)) == ["begin", "end"]
    assert frames_of(lambda: gate.check_in(gate.check_out(None))) == [
        "check_out",
        "try_enter_fast",
        "check_in",
    ]


def answer():
    return 42


@contextlib.contextmanager
def request():
    """A request with a timeout, as a middleware opens it."""
    scope = enter(RequestScope(time.monotonic() + 5, time.monotonic, current()))
    try:
        yield
    finally:
        close(scope)


def test_one_body_is_written_twice_and_is_the_same():
    """In `Guard.run` and in what `guarded` makes: a function that both called would cost a frame a call."""
    bodies = []
    for module, name in ((guard_module, "run"), (decorator_module, "wrapper")):
        tree = ast.parse(inspect.getsource(module))
        found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
        bodies.append(
            [ast.dump(step) for node in found for step in node.body if isinstance(step, ast.Try)][:1]
        )
    one, other = (re.sub(r"Constant\(value='[^']*'\)", "advice", str(body)) for body in bodies)
    assert one == other
