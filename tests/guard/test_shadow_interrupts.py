"""Ctrl-C at every place of the moves in shadow, of a switch of the mode, and of a queue: no slot is lost.

The clock is the test's own, so each run meets the same places. What is interrupted is done again by whoever
did it, as the library's callers do. Then every call ends and the queue's time passes, and nothing is left.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from functools import partial

import pytest

from guardrails import BreakerPolicy, CircuitOpenError, Guard, deadline
from guardrails._core.bulkhead import Waiter
from guardrails._core.criticality import CLASSES
from guardrails._core.outcome import Outcome
from guardrails._pool.checkout import Checkout
from guardrails._runtime.scope import RankScope, ambient, current
from guardrails.integrations.redis._commands import CommandRunner
from support.calls import Boom, boom
from support.interrupts import interrupted_everywhere

S, F = Outcome.SUCCESS, Outcome.FAILURE
SHEDDABLE = CLASSES.index("SHEDDABLE")
WAIT = 0.5
KINDS = "slot", "refused", "waits", "granted", "late", "expelled"


class Situation:
    """A guard with one slot and a clock of its own, and the calls that are under way.

    Args:
        mode: The guard's mode while the calls begin.
        checkouts: Whether they are a pool's checkouts.
        rank: The rank of their criticality; None is the default.
        parts: Whether the guard has a compartment.
        inside: Whether the calls under way hold the slot of the compartment alone.
    """

    def __init__(self, mode="shadow", *, checkouts=False, rank=None, parts=False, inside=False, wait=WAIT):
        self._now = [0.0]
        self.checkouts = checkouts
        self.running = {}
        self.waiters = []
        self._number = 0
        self._inside = inside
        self.guard = Guard(
            "db",
            max_concurrent_calls=1,
            max_wait_duration=wait,
            max_waiting=10,
            timeout=None,
            breaker=BreakerPolicy(minimum_number_of_calls=1000),
            clock=partial(self._now.__getitem__, 0),
        )
        if parts:
            self.guard.compartment("part", max_concurrent_calls=1)
        self._rank = rank
        self.guard.set_mode(mode)

    @property
    def gate(self):
        return (self.guard.compartments[0] if self._inside else self.guard)._gate

    @property
    def core(self):
        return self.gate.core

    def tick(self, seconds):
        self._now[0] += seconds

    def play(self):
        for each in (self.guard, *self.guard.compartments):
            each._gate.step(each._gate.core.advance_model)

    def begin(self, name=None, **options):
        """Begins a call, under a name."""
        self._number += 1
        ambient.set(None if self._rank is None else RankScope(self._rank, None))
        try:
            self.running[name or self._number] = self.gate.enter(checkout=self.checkouts, **options)
        finally:
            ambient.set(None)

    def wait(self):
        """Lets a caller join the queue for real."""
        waiter = Waiter()
        move = self.core.check_out if self.checkouts else self.core.enter
        assert self.gate.step(move, waiter, *[] if self._rank is None else [self._rank]) is None
        self.waiters.append(waiter)

    def end(self, name, outcome=S):
        """Ends a call; a second time it does nothing."""
        if self.checkouts:
            self.gate.check_in_slowly(self.running[name])
        else:
            self.gate.end_slowly(self.running[name], outcome, 1)

    def with_a_call(self, kind):
        """Begins a call of one kind, called "it", and gives this situation."""
        if kind == "slot" or self.core.mode == "off":
            self.begin("it")
            return self
        self.begin("holder")
        self.begin("it", may_wait=kind != "refused")
        self.tick(0.1)
        if kind in {"granted", "expelled"}:
            self.end("holder")
        if kind == "late":
            self.tick(WAIT)
            self.play()
        if kind == "expelled":
            self.expel("it")
        return self

    def expel(self, name):
        self.gate.step(self.core.end_in_model, self.running[name], F, checkout=self.checkouts)

    def settle(self):
        """Ends everything, and gives what is left: nothing, unless something was lost."""
        for name in self.running:
            self.end(name)
        for waiter in self.waiters:
            self.gate.step(self.core.abandon, waiter)
        self.tick(10 * WAIT)
        self.play()
        left = {}
        for each in (self.guard, *self.guard.compartments):
            core = each._gate.core
            books = {
                "taken": core.bulkhead.taken,
                "queue": len(core.bulkhead.queue),
                "ranks": 0 if core.bulkhead.ranks is None else sum(map(abs, core.bulkhead.ranks.held)),
                "outside": len(core.outside),
                "unslotted": core.unslotted,
                "slots_of_ended": core.slots_of_ended,
                "events": len(core.events),
                "in_flight": len(core.breaker.in_flight),
                "checkouts": len(core.checkouts),
                "releasing": 0 if core.releasing is None else 1,
            }
            left |= {f"{each.name}: {name}": count for name, count in books.items() if count}
        if current() is not None:
            left["scope"] = 1
        ambient.set(None)
        for each in (self.guard, *self.guard.compartments):  # the next test starts without calls
            each._gate.core.drop_calls_and_waiters()
        return left


def what_is_lost(make, move, again, *, least):
    """Where an interrupt of a move loses something, and what."""
    lost, places = [], 0
    made = []
    for where, situation in interrupted_everywhere(lambda: made.append(make()) or made[-1], move):
        places += 1
        gate = situation.gate
        assert not gate.lock._is_owned(), f"the lock is held after an interrupt at {where}"
        again(situation)
        left = situation.settle()
        if left:
            lost.append((where, left))
    whole = make()
    move(whole)
    again(whole)
    assert whole.settle() == {}
    for each in made:  # the rehearsals
        each.settle()
    assert places >= least
    return lost


def calls(*kinds):
    """A table of kinds, for calls, checkouts, and calls that are ranked; by default calls only."""
    return [
        pytest.param(kind, checkouts, rank, marks=() if not checkouts and rank is None else pytest.mark.slow)
        for kind in kinds
        for checkouts, rank in ((False, None), (True, None), (False, SHEDDABLE), (True, SHEDDABLE))
    ]


# --- one move of the core ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls(*KINDS))
def test_an_interrupted_end_of_a_call_in_shadow_loses_no_slot(kind, checkouts, rank):
    """Whoever ends a call ends it again when it was interrupted."""
    make = lambda: Situation(checkouts=checkouts, rank=rank).with_a_call(kind)
    end = lambda situation: situation.end("it")
    assert what_is_lost(make, end, end, least=4) == []


@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("slot", "waits", "granted"))
def test_an_interrupted_end_in_the_model_loses_no_slot(kind, checkouts, rank):
    """A call that enforcing would stop leaves the model, while it runs on. Nobody does that again."""
    make = lambda: Situation(checkouts=checkouts, rank=rank).with_a_call(kind)
    assert what_is_lost(make, lambda each: each.expel("it"), lambda each: None, least=4) == []


@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("slot", "refused", "waits"))
def test_an_interrupted_admission_in_shadow_loses_no_slot(kind, checkouts, rank):
    """The caller does not know its number, so it cannot end its call."""

    def make():
        situation = Situation(checkouts=checkouts, rank=rank)
        if kind != "slot":
            situation.begin("holder")
        return situation

    def admit(situation):
        situation.begin("it", may_wait=kind == "waits")

    assert what_is_lost(make, admit, lambda each: None, least=10) == []


def with_a_queue(situation):
    """Two calls would wait, one has ended meanwhile, and the holder of the slot goes."""
    situation.begin("holder")
    situation.begin("first")
    situation.begin("second")
    situation.tick(0.1)
    situation.end("second")
    return situation


@pytest.mark.parametrize("then", ["its end", "its time", "both"])
@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("queue"))
def test_an_interrupt_while_the_model_is_brought_up_to_date_loses_no_slot(then, kind, checkouts, rank):
    """What the model would have done meanwhile is done in the move of a caller that it does not concern."""

    def make():
        situation = with_a_queue(Situation(checkouts=checkouts, rank=rank))
        if then != "its time":
            situation.end("holder")
            situation.end("first")
        situation.tick(3 * WAIT if then != "its end" else 0.15)
        return situation

    def move(situation):
        situation.begin("another", may_wait=False)

    assert what_is_lost(make, move, lambda each: None, least=10) == []


@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("queue"))
def test_an_interrupted_end_for_which_another_waits_in_the_model_loses_no_slot(kind, checkouts, rank):
    make = lambda: with_a_queue(Situation(checkouts=checkouts, rank=rank))
    end = lambda situation: situation.end("holder")
    assert what_is_lost(make, end, end, least=10) == []


@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("queue"))
def test_an_interrupted_end_for_which_another_waits_for_real_loses_no_slot(kind, checkouts, rank):
    def make():
        situation = Situation("enforce", checkouts=checkouts, rank=rank)
        situation.begin("holder")
        situation.wait()
        situation.wait()
        return situation

    end = lambda situation: situation.end("holder")
    assert what_is_lost(make, end, end, least=10) == []


@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("queue"))
def test_an_interrupted_end_of_a_wait_loses_no_slot(kind, checkouts, rank):
    """The circuit has been opened meanwhile, so the caller that was granted a slot gives it back."""

    def make():
        situation = Situation("enforce", checkouts=checkouts, rank=rank)
        situation.begin("holder")
        situation.wait()
        situation.wait()
        situation.end("holder")
        situation.gate.step(situation.core.set_state, "forced_open")
        return situation

    def wake(situation):
        core = situation.core
        situation.gate.step(core.woken_checkout if checkouts else core.woken, situation.waiters[0])

    assert what_is_lost(make, wake, lambda each: None, least=10) == []


@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("resize"))
def test_an_interrupted_resize_loses_no_slot(kind, checkouts, rank):
    def make():
        situation = Situation("enforce", checkouts=checkouts, rank=rank)
        situation.begin("holder")
        situation.wait()
        situation.wait()
        return situation

    assert what_is_lost(make, lambda each: each.guard.resize(3), lambda each: None, least=4) == []


class Holder:
    """A checkout that waits for its pool, and does not leave the model for a refusal."""

    since = 0.0

    def leave_model(self):
        """See ModelledCall."""


@pytest.mark.parametrize("then", ["its time", "its end", "its time and end"])
@pytest.mark.parametrize(("kind", "checkouts", "rank"), [("slot", True, None), ("waits", True, None)])
def test_an_interrupt_as_a_checkout_waits_for_its_pool_loses_no_slot(then, kind, checkouts, rank):
    """It leaves the model after its usual time, whether its real end comes before that or later."""

    def make():
        situation = Situation(checkouts=checkouts, rank=rank).with_a_call(kind)
        situation.gate.step(situation.core.end_early, situation.running["it"], WAIT / 2, Holder())
        if kind == "waits":
            situation.end("holder")
        if "time" in then:
            situation.tick(WAIT)
        return situation

    def move(situation):
        if "end" in then:
            situation.end("it")
        else:
            situation.begin("another", may_wait=False)

    again = move if "end" in then else lambda each: None
    assert what_is_lost(make, move, again, least=10) == []


@pytest.mark.parametrize(("kind", "checkouts", "rank"), [("slot", True, None), ("waits", True, None)])
def test_an_interrupt_as_a_checkout_begins_to_wait_for_its_pool_loses_no_slot(kind, checkouts, rank):
    make = lambda: Situation(checkouts=checkouts, rank=rank).with_a_call(kind)

    def move(situation):
        situation.gate.step(situation.core.end_early, situation.running["it"], WAIT / 2, Holder())

    assert what_is_lost(make, move, lambda each: None, least=4) == []


@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("probe"))
def test_an_interrupt_as_calls_become_overdue_loses_no_slot(kind, checkouts, rank):
    """Two calls, one of them a probe whose permit expires, are marked slow in the move of another caller."""

    def make():
        situation = Situation("enforce", checkouts=checkouts, rank=rank)
        situation.guard.resize(5)
        situation.begin()
        situation.tick(0.1)
        situation.guard.force_open()
        situation.gate.step(situation.core.set_state, "half_open")
        situation.begin()
        situation.tick(100)
        return situation

    def move(situation):
        with contextlib.suppress(CircuitOpenError):
            situation.begin()

    assert what_is_lost(make, move, lambda each: None, least=20) == []


# --- a switch of the mode ------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["enforce", "off"])
@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls(*KINDS, "queue"))
def test_an_interrupted_switch_from_shadow_loses_no_slot(to, kind, checkouts, rank):
    """The operator switches again. A call ends in the books in which it began."""

    def make():
        situation = Situation(checkouts=checkouts, rank=rank)
        return with_a_queue(situation) if kind == "queue" else situation.with_a_call(kind)

    switch = lambda situation: situation.guard.set_mode(to)
    assert what_is_lost(make, switch, switch, least=10) == []


@pytest.mark.parametrize("to", ["shadow", "off"])
@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("slot", "adopted"))
def test_an_interrupted_switch_from_enforcing_loses_no_slot(to, kind, checkouts, rank):
    """With callers that wait, and with a call that had begun without a slot."""

    def make():
        situation = Situation("off" if kind == "adopted" else "enforce", checkouts=checkouts, rank=rank)
        situation.begin("it")
        situation.guard.set_mode("enforce")
        situation.wait()
        return situation

    switch = lambda situation: situation.guard.set_mode(to)
    assert what_is_lost(make, switch, switch, least=10) == []


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("begun", ["shadow", "off"])
@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("refused"))
def test_an_interrupted_end_of_an_adopted_call_loses_no_slot(waits, begun, kind, checkouts, rank):
    """It began without a slot, and holds one since the guard enforces; another waits for it."""

    def make():
        situation = Situation(begun, checkouts=checkouts, rank=rank).with_a_call(kind)
        situation.guard.set_mode("enforce")
        if waits:
            situation.wait()
        return situation

    end = lambda situation: situation.end("it")
    assert what_is_lost(make, end, end, least=4) == []


@pytest.mark.parametrize(("kind", "checkouts", "rank"), calls("queue"))
def test_an_interrupt_as_a_caller_is_let_in_from_the_queue_loses_no_slot(kind, checkouts, rank):
    """The mode was changed while it waited, and once more before it woke up."""

    def make():
        situation = Situation("enforce", checkouts=checkouts, rank=rank)
        situation.begin("holder")
        situation.wait()
        situation.guard.set_mode("off")
        situation.guard.set_mode("enforce")
        return situation

    def wake(situation):
        core, held = situation.core, [0]
        try:
            move = core.woken_checkout if checkouts else core.woken
            situation.gate.step(move, situation.waiters[0], "queue_timeout", held)
        except BaseException:
            situation.gate._abort_admission(held, situation.waiters[0], checkout=checkouts)
            raise
        situation.running["it"] = held[0]

    assert what_is_lost(make, wake, lambda each: None, least=4) == []


# --- whole calls, as the library's users make them ----------------------------------------------


def through_run(situation, body):
    situation.guard.run(body)


def through_a_failure(situation, body):
    def fail():
        body()
        boom()

    with contextlib.suppress(Boom):
        situation.guard.run(fail)


def through_a_deadline(situation, body):
    with deadline(100, clock=situation.gate.clock):
        situation.guard.run(body)


def through_a_compartment(situation, body):
    situation.guard.compartments[0].run(body)


def through_a_full_compartment(situation, body):
    situation.guard.compartments[0].run(body)


def through_a_block(situation, body):
    with situation.guard.call():
        body()


def through_a_coroutine(situation, body):
    async def work():
        body()

    with contextlib.suppress(StopIteration):
        situation.guard.run_async(work).send(None)


def through_a_pool(situation, body):
    checkout = Checkout(situation.guard)
    try:
        checkout.take_slots()
        body()
    finally:
        checkout.release_slots()


def through_a_redis_pool(situation, body):
    checkout = CommandRunner(situation.guard, None, is_async=False).enter()
    try:
        body()
    finally:
        checkout.release_slots()


WAYS = {
    through_run: [],
    through_a_failure: [],
    through_a_deadline: [],
    through_a_compartment: [],
    through_a_full_compartment: [],
    through_a_coroutine: [],
    # The first instruction of what is called to end it: Python protects no `__exit__` written in Python.
    through_a_block: ["__exit__"],
    through_a_pool: ["release_slots"],
    through_a_redis_pool: ["release_slots"],
}


# A coroutine that an interrupt ends before its first instruction.
@pytest.mark.filterwarnings("ignore:coroutine", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["free", "off", "refused", "waits", "granted", "late", "switched"])
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=() if way in {through_run, through_a_pool} else pytest.mark.slow)
        for way in WAYS
    ],
)
def test_an_interrupt_of_a_whole_call_in_shadow_loses_no_slot(way, what):
    """With the one slot free or held, and with what may happen while a call would wait."""

    def make():
        situation = Situation(
            "off" if what == "off" else "shadow",
            parts=way in {through_a_compartment, through_a_full_compartment},
            inside=way is through_a_full_compartment,
            wait=0 if what == "refused" else WAIT,
        )
        if what not in {"free", "off"}:
            situation.begin("holder")
        return situation

    def move(situation):
        def body():
            situation.tick(0.1)
            if what == "granted":
                situation.end("holder")
            if what == "late":
                situation.tick(WAIT)
                situation.play()
            if what == "switched":
                situation.guard.set_mode("enforce")

        way(situation, body)

    lost = what_is_lost(make, move, lambda each: None, least=20)
    assert Counter(function for (_, function), _ in lost) <= Counter(WAYS[way]), lost
