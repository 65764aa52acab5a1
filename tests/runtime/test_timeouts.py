"""Which timeout counts: every way to give one, around every other, on plain guards and on attached ones."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import CallTimeoutError, Guard, deadline, guarded, remaining
from guardrails._guard.guard import attach
from guardrails._pool.limits import innermost, time_allowed
from guardrails._runtime.scope import RequestScope, close, current, enter
from guardrails._runtime.timeouts import outer_seconds_left
from guardrails.testing import FakeClock

DEFAULT = 5.0
SHORT, LONG = 2.0, 30.0

# What may stand around a statement, with the seconds it says; None of a call: it says nothing.
DEADLINE, REQUEST, CALL, PART, OTHER = "deadline", "request", "call", "compartment", "another guard's call"
LAYERS = [
    *itertools.product([DEADLINE, REQUEST, OTHER], [SHORT, LONG]),
    *itertools.product([CALL, PART], [None, SHORT, LONG]),
    (PART, "unbounded"),
]


@contextlib.contextmanager
def request_of(seconds, clock):
    """As the middleware's ``request_timeout``."""
    scope = enter(RequestScope(clock() + seconds, clock, current()))
    try:
        yield
    finally:
        close(scope)


class Lab:
    """A guard, and what may be opened around its work."""

    def __init__(self, *, attached):
        self.clock = FakeClock()
        options = {"max_concurrent_calls": 100, "clock": self.clock}
        self.guard = Guard("db", timeout=DEFAULT, **options)
        self.other = Guard("search", timeout=None, **options)
        self.parts = {
            None: self.guard.compartment("says nothing"),
            SHORT: self.guard.compartment("short", timeout=SHORT),
            LONG: self.guard.compartment("long", timeout=LONG),
            "unbounded": self.guard.compartment("unbounded", timeout=None),
        }
        if attached:
            attach(self.guard, SimpleNamespace(most=None, detach=lambda: None))

    def layer(self, kind, seconds):
        """Opens one of `LAYERS`."""
        if kind == DEADLINE:
            return deadline(seconds, clock=self.clock)
        if kind == REQUEST:
            return request_of(seconds, self.clock)
        if kind == OTHER:
            return self.other.call(seconds)
        return (self.guard if kind == CALL else self.parts[seconds]).call(seconds if kind == CALL else None)

    def inside(self, layers, look):
        """The result of ``look`` inside all the layers, the first outermost."""
        with contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(self.layer(*layer))
            return look()


def said(layers):
    """The timeouts of the guard's own layers, the nearest first."""
    return [
        math.inf if seconds == "unbounded" else seconds
        for kind, seconds in reversed(layers)
        if kind in {CALL, PART} and seconds is not None
    ]


def from_outside(layers):
    return min((seconds for kind, seconds in layers if kind in {DEADLINE, REQUEST, OTHER}), default=math.inf)


def seconds_of(value):
    return math.inf if value is None else value


@pytest.mark.sampled(100)
@pytest.mark.parametrize("option", [None, SHORT, LONG])
@pytest.mark.parametrize(
    "layers", [[], *([layer] for layer in LAYERS), *map(list, itertools.product(LAYERS, repeat=2))], ids=str
)
def test_the_nearest_timeout_of_an_attached_guard_counts_and_outer_scopes_limit_it(layers, option):
    """The table of docs/guides/deadlines.md: a statement's option, a call's, a compartment's, the guard's."""
    lab = Lab(attached=True)
    allowed, own = lab.inside(layers, lambda: time_allowed(innermost(lab.guard), option))
    nearest = option if option is not None else [*said(layers), DEFAULT][0]
    assert seconds_of(allowed) == min(nearest, from_outside(layers))
    assert own == (nearest <= from_outside(layers))


@pytest.mark.sampled(60)
@pytest.mark.parametrize(
    "layers", [[], *([layer] for layer in LAYERS), *map(list, itertools.product(LAYERS, repeat=2))], ids=str
)
def test_a_plain_guards_call_is_limited_by_the_calls_around_it(layers):
    """A call that says nothing takes what is left of the nearest that does; only then the default."""
    lab = Lab(attached=False)
    left = lab.inside([*layers, (CALL, None)], remaining)
    around = min([*said(layers), from_outside(layers)], default=math.inf)
    if not any(kind in {CALL, PART} and seconds is not None for kind, seconds in layers):
        around = min(around, DEFAULT)
    # A call around it that says nothing has been given the default, or what was left.
    for n, (kind, seconds) in enumerate(layers):
        if kind in {CALL, PART} and seconds is None and not said(layers[:n]):
            around = min(around, DEFAULT)
    assert seconds_of(left) == around


@given(st.lists(st.sampled_from(LAYERS), max_size=5), st.sampled_from([None, SHORT, LONG]))
def test_the_timeout_that_counts_does_not_depend_on_the_number_of_layers(layers, option):
    """As with two."""
    lab = Lab(attached=True)
    allowed, _ = lab.inside(layers, lambda: time_allowed(innermost(lab.guard), option))
    nearest = option if option is not None else [*said(layers), DEFAULT][0]
    assert seconds_of(allowed) == min(nearest, from_outside(layers))


def test_a_calls_timeout_is_for_all_its_statements_and_a_compartments_for_each():
    """Time passes between them."""
    lab = Lab(attached=True)
    with lab.guard.call(LONG):
        lab.clock.advance(10)
        assert time_allowed(innermost(lab.guard)) == (20, True)
        with lab.parts[SHORT].call():
            lab.clock.advance(5)
            assert time_allowed(innermost(lab.guard)) == (SHORT, True)
            with lab.guard.call(1.0):
                assert remaining() == 1
            assert time_allowed(innermost(lab.guard), LONG) == (LONG, True)
        assert time_allowed(innermost(lab.guard)) == (15, True)


def test_a_spent_timeout_of_a_guard_does_not_refuse_a_nearer_call_with_its_own():
    """A nearer timeout starts anew; an ambient deadline that is over refuses everything."""
    lab = Lab(attached=True)
    with lab.guard.call(SHORT):
        lab.clock.advance(3)
        assert time_allowed(innermost(lab.guard)) == (0, True)
        with lab.guard.call(LONG):
            assert remaining() == LONG
            assert time_allowed(innermost(lab.guard)) == (LONG, True)
        assert time_allowed(innermost(lab.guard), 4.0) == (4.0, True)


def test_a_nested_compartment_inherits_the_timeout_given_to_its_parent():
    """An inherited timeout counts as given, too."""
    lab = Lab(attached=True)
    inner = lab.parts[LONG].compartment("inner")
    with inner.call():
        assert time_allowed(innermost(lab.guard)) == (LONG, True)
        assert inner.timeout == LONG


def test_the_decorator_raises_a_plain_guards_timeout_for_each_retry():
    """And a nested one takes what is left."""
    guard = Guard("db", max_concurrent_calls=4, timeout=0.02, breaker=None)

    @guarded(guard, timeout=LONG)
    def outer():
        return remaining(), inner()

    @guarded(guard)
    def inner():
        return remaining()

    assert all(LONG - 1 < left <= LONG for left in outer())
    assert inner() <= 0.02

    @guarded(guard, timeout=10)
    async def outer_async():
        return await inner_async(0.1)

    @guarded(guard)
    async def inner_async(seconds):
        await asyncio.sleep(seconds)
        return remaining()

    assert 9 < asyncio.run(outer_async()) < 10
    with pytest.raises(CallTimeoutError) as late:
        asyncio.run(inner_async(30))
    assert late.value.timeout == 0.02


def test_a_task_inside_a_call_times_out_with_the_seconds_it_had():
    """It is stopped by a timer of its own, at the deadline of the call around it."""
    guard = Guard("db", max_concurrent_calls=4, timeout=30, breaker=None)

    @guarded(guard, timeout=0.05)
    async def outer():
        await asyncio.gather(inner(), inner())

    @guarded(guard)
    async def inner():
        await asyncio.sleep(30)

    with pytest.raises(CallTimeoutError) as late:
        asyncio.run(outer())
    assert 0 < late.value.timeout <= 0.05


@pytest.mark.parametrize(("outer", "inner", "soonest"), [(10, 20, 10), (20, 10, 10), (10, 10, 10)])
def test_the_soonest_of_nested_deadlines_limits_an_attached_guard(outer, inner, soonest):
    """The timeout of the guard's own call, which is smaller, is no limit from outside."""
    lab = Lab(attached=True)
    gate = lab.guard.call_settings.root
    with deadline(outer, clock=lab.clock), deadline(inner, clock=lab.clock), lab.guard.call(SHORT):
        assert remaining() == SHORT
        assert outer_seconds_left(current(), gate) == soonest
    with lab.guard.call(SHORT):
        assert outer_seconds_left(current(), gate) is None
