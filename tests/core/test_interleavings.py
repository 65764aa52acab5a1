"""Every order in which three actors can make their moves on one gate; and that the explorer sees bugs."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker
from guardrails._core.bulkhead import Bulkhead, Waiter
from guardrails._core.gate import Gate, Refusal
from guardrails._core.outcome import Outcome
from support.explorer import World, explore
from support.paths import DOCS
from support.shell import FastPaths

S, F, X = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED
POLICY = BreakerPolicy(
    sliding_window_type="count",
    sliding_window_size=2,
    minimum_number_of_calls=1,
    failure_rate_threshold=1,
    slow_call_duration_threshold=60,
    wait_duration_in_open_state=1,
    open_jitter=0,
    permitted_calls_in_half_open_state=1,
)


RAMPING = replace(POLICY, recovery_ramp=2)


def make_world(limit=1, gate=Gate, breaker=Breaker, bulkhead=Bulkhead):
    return World(gate(breaker(POLICY, lambda: 0.5), bulkhead(limit, 2)))


# --- actors --------------------------------------------------------------------------------------


def caller(world, outcome=S):
    """Waits until it is woken, calls, and leaves."""
    waiter = Waiter()
    yield "enters"
    ticket = world.enter(waiter)
    if ticket is None:
        yield "wakes up", lambda: waiter in world.told
        ticket = world.wake(waiter)
    yield from calling(world, ticket, outcome)


def failing(world):
    """A caller whose call opens the circuit."""
    return caller(world, F)


def hurried(world):
    """A caller whose wait may end at any moment, also in the one in which it is granted a slot."""
    waiter = Waiter()
    yield "enters"
    ticket = world.enter(waiter)
    if ticket is None:
        yield "has waited"
        ticket = world.wake(waiter)
    yield from calling(world, ticket, S)


def cancelled(world):
    """A caller that is cancelled wherever it is: in the queue, at the grant, in its call."""
    waiter = Waiter()
    yield "enters"
    ticket = world.enter(waiter)
    yield "is cancelled"
    if ticket is None:
        world.abandon(waiter)
        world.gate.abandon(world.now, waiter)  # who finds it dead may come second
    elif not isinstance(ticket, Refusal):
        world.leave(ticket, X)


def borrower(world):
    """A pool's checkout with a statement that fails."""
    waiter = Waiter()
    yield "checks out"
    slot = world.enter(waiter, checkout=True)
    if slot is None:
        yield "wakes up", lambda: waiter in world.told
        slot = world.wake(waiter, checkout=True)
    if isinstance(slot, Refusal):
        return
    yield "runs a statement"
    ticket = FastPaths(world.gate).begins(world.now) or world.gate.begin(world.now, slot)
    world.gate.end(world.now, ticket, F)
    yield "checks in"
    world.check_in(slot)


def resizer(world):
    """A hand on the number of slots."""
    for limit in (2, 1):
        yield f"resizes to {limit}"
        world.gate.resize(world.now, limit)


def switcher(world):
    """A hand on the circuit: opens it, and time makes it half-open."""
    yield "opens"
    world.gate.set_state(world.now, "open")
    yield "lets the open period pass"
    world.now += 1


def resetter(world):
    """A hand that starts a round of probes and takes it back."""
    for transition in ("half_open", "reset"):
        yield transition
        world.gate.set_state(world.now, transition)


def clock(world):
    """Time passes, and somebody looks, as each caller that waits does when a slot becomes usable."""
    for _ in range(2):
        yield "a second passes"
        world.now += 1
        world.gate.advance_model(world.now)


def calling(world, ticket, outcome):
    if not isinstance(ticket, Refusal):
        yield f"leaves with {outcome.name}"
        world.leave(ticket, outcome)


ACTORS = [caller, failing, hurried, cancelled, borrower, resizer, switcher, resetter]
STORIES = list(itertools.combinations_with_replacement(ACTORS, 3))


def told_by(*actors, **parts):
    """A story: the actors by name, in a fresh world."""

    def story():
        world = make_world(**parts)
        return world, {f"{actor.__name__} {number}": actor(world) for number, actor in enumerate(actors, 1)}

    return story


@pytest.mark.sampled(60)
@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("actors", STORIES, ids=lambda actors: "-".join(actor.__name__ for actor in actors))
def test_every_order_of_moves(actors, limit):
    """Slots are conserved, no caller waits beside a free slot, first come first served, no probe too many."""
    assert explore(told_by(*actors, limit=limit)) >= 20


@pytest.mark.slow
def test_the_schedules_are_as_many_as_the_page_says():
    """All scenarios once more, two seconds of computing: the sum depends on what the gate does in each."""
    schedules = sum(explore(told_by(*actors, limit=limit)) for actors in STORIES for limit in (1, 2))
    page = (DOCS / "internals/proof.md").read_text()
    stated = re.search(r"([\d,]+) scenarios, all ([\d,]+) schedules", page)
    assert [figure.replace(",", "") for figure in stated.groups()] == [str(2 * len(STORIES)), str(schedules)]


def recovered(*actors, gate=Gate):
    """A story that begins as a circuit closes: one of three slots is usable, a second later two of them."""

    def story():
        world = World(gate(Breaker(RAMPING, lambda: 0.5), Bulkhead(3, 2)))
        world.gate.set_state(world.now, "half_open")
        world.gate.leave(world.now, world.gate.enter(world.now, None), S)
        world.look()
        assert world.gate.bulkhead.usable == 1
        return world, {f"{actor.__name__} {number}": actor(world) for number, actor in enumerate(actors, 1)}

    return story


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "actors",
    list(itertools.combinations_with_replacement(ACTORS, 2)),
    ids=lambda actors: "-".join(actor.__name__ for actor in actors),
)
def test_every_order_of_moves_during_a_ramp(actors):
    """The same holds for the slots that are usable, and a caller gets one as soon as it becomes usable."""
    assert explore(recovered(clock, caller, *actors)) >= 20


def test_the_explorer_tries_more_than_fifty_orders():
    """A story of three actors has dozens of schedules, each tried once."""
    schedules = []

    def story():
        world, actors = told_by(caller, caller, cancelled)()
        schedules.append([])

        def noting(name, actor):
            for move in actor:
                yield move
                schedules[-1].append(name)

        return world, {name: noting(name, actor) for name, actor in actors.items()}

    count = explore(story)
    assert len({tuple(schedule) for schedule in schedules}) == count == len(schedules) > 50


# --- the explorer sees bugs ----------------------------------------------------------------------


class ForgetsToWake(Gate):
    """Grants the slot and wakes no waiter."""

    def _release_slot(self, *_rank):
        self.releasing = None
        self.bulkhead.leave()


class GivesBackTwice(Gate):
    """Ends a call that has ended."""

    def leave(self, now, ticket, outcome):
        ended = super().leave(now, ticket, outcome)
        if ended is None:
            self._release_slot()
        return ended


class LastComeFirstServed(Bulkhead):
    """Serves the wrong end of the queue."""

    def _grant(self):
        first, *others = self.queue
        last = [first, *others][-1]
        del self.queue[last]
        last.verdict = "granted"
        return last


class FreesAndWakes(Bulkhead):
    """Lets the slot go and has the waiter try its luck, as a condition variable would."""

    def leave(self):
        self.taken -= 1
        return next(iter(self.queue), None)


class LosesTheRace(Bulkhead):
    """A wait that ends as the slot is granted loses it."""

    def withdraw(self, waiter):
        if waiter.verdict == "granted":
            waiter.verdict = "settled"
            return True
        return super().withdraw(waiter)


class AdmitsEveryProbe(Breaker):
    """Counts no permits."""

    def allow_call(self, now):
        return super().allow_call(now) or self.state == "half_open"


class WaitsInTheOpen(Gate):
    """Leaves the queue standing when the circuit opens."""

    def _collect_transitions(self):
        self.outbox.extend(self.breaker.transitions)
        self.breaker.transitions.clear()


class ForgetsTheWaiters(Gate):
    """Counts the usable slots and grants none of them."""

    def _fit_slots(self, limit):
        queue, self.bulkhead.queue = self.bulkhead.queue, {}
        super()._fit_slots(limit)
        self.bulkhead.queue = queue


class NeverGrows(Gate):
    """Counts the usable slots once."""

    def _begin_move(self, now):
        self.grows_at = float("inf")
        return super()._begin_move(now)


@pytest.mark.parametrize(
    ("gate", "complaint"),
    [(ForgetsTheWaiters, "beside a free slot"), (NeverGrows, "every slot is usable in the end")],
)
def test_the_explorer_finds_the_fault_of_a_broken_ramp(gate, complaint):
    """At the end of the story two seconds have passed."""

    def onlooker(world):
        yield "looks at the end", lambda: world.now >= 2
        assert world.gate.bulkhead.usable == 3, "every slot is usable in the end"

    with pytest.raises(AssertionError, match=complaint):
        explore(recovered(clock, onlooker, caller, caller, gate=gate))


@pytest.mark.parametrize(
    ("actors", "parts", "complaint"),
    [
        ((caller, caller, caller), {"gate": ForgetsToWake}, "not told its verdict"),
        ((caller, caller, caller), {"gate": GivesBackTwice}, "settled twice|gave two slots back"),
        ((caller, caller, hurried), {"bulkhead": LastComeFirstServed}, "overtook another"),
        ((caller, caller, caller), {"bulkhead": FreesAndWakes}, "beside a free slot"),
        ((caller, hurried, caller), {"bulkhead": LosesTheRace}, "not conserved"),
        ((caller, caller, resetter), {"breaker": AdmitsEveryProbe, "limit": 2}, "too many probes"),
        ((failing, caller, caller), {"gate": WaitsInTheOpen}, "at a circuit that is not closed"),
    ],
    ids=lambda value: next(iter(value.values())).__name__ if isinstance(value, dict) else None,
)
def test_the_explorer_finds_the_fault_of_a_broken_gate(actors, parts, complaint):
    """The message has the schedule that shows it."""
    with pytest.raises(AssertionError, match=complaint) as fault:
        explore(told_by(*actors, **parts))
    assert "\n  1. " in str(fault.value)
    assert " enters" in str(fault.value)


def test_a_lost_wake_up_is_found_by_the_caller_that_waits_for_ever(monkeypatch):
    """Also without a check of the outbox: no actor can move, and one has not finished."""
    monkeypatch.setattr(World, "look", lambda world: None)
    with pytest.raises(AssertionError, match="waits for ever: caller 2"):
        explore(told_by(caller, caller, gate=ForgetsToWake))
