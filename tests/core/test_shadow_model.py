"""The model of the shadow, held against a gate that enforces: one service simulated twice, by events."""

from __future__ import annotations

import heapq
import random

import pytest

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker
from guardrails._core.bulkhead import Bulkhead, Waiter
from guardrails._core.gate import Gate, Refusal
from guardrails._core.outcome import Outcome

S, F = Outcome.SUCCESS, Outcome.FAILURE
SLOTS, WORK, WAIT = 10, 0.05, 0.05


def new_gate(policy=None):
    return Gate(Breaker(policy, lambda: 0.5), Bulkhead(SLOTS, SLOTS))


def arrivals(load, seconds, seed):
    """Independent callers: ``load`` times as many as the slots can serve."""
    dice, at = random.Random(seed), 0.0
    while (at := at + dice.expovariate(load * SLOTS / WORK)) < seconds:
        yield at, WORK * (0.5 + dice.random())


def enforced(gate, people, failing):  # noqa: C901 - a simulation
    """Serves them for real: who finds no slot waits, or goes."""
    todo = [(at, number, "comes", work, None) for number, (at, work) in enumerate(people)]
    heapq.heapify(todo)
    number = len(todo)
    waiting = {}

    def start(at, ticket, work):
        nonlocal number
        number += 1
        heapq.heappush(todo, (at + work, number, "ends", ticket, None))

    while todo:
        at, _, what, about, waiter = heapq.heappop(todo)
        if what == "comes":
            waiter = Waiter()
            verdict = gate.enter(at, waiter)
            if verdict is None:
                waiting[waiter] = about
                number += 1
                patience = gate.bulkhead.wait_limit(WAIT, at)
                heapq.heappush(todo, (at + patience, number, "gives up", None, waiter))
            elif not isinstance(verdict, Refusal):
                start(at, verdict, about)
        elif what == "ends":
            gate.leave(at, about, F if failing(at) else S)
        elif waiter in waiting:
            waiting.pop(waiter)
            assert isinstance(gate.woken(at, waiter), Refusal)
        for item in gate.outbox:
            if isinstance(item, Waiter) and item in waiting:
                work = waiting.pop(item)
                verdict = gate.woken(at, item)
                if not isinstance(verdict, Refusal):
                    start(at, verdict, work)
        gate.outbox.clear()
    return gate.rejected


def shadowed(gate, people, failing):
    """Lets all of them in at once."""
    gate.set_mode(0.0, "shadow")
    todo = [(at, number, None, work) for number, (at, work) in enumerate(people)]
    heapq.heapify(todo)
    number = len(todo)
    while todo:
        at, _, ticket, work = heapq.heappop(todo)
        if ticket is None:
            number += 1
            heapq.heappush(todo, (at + work, number, gate.let_in(at, [0], max_wait=WAIT), 0))
        else:
            gate.leave(at, ticket, F if failing(at) else S)
        gate.outbox.clear()
    gate.advance_model(at + 10)
    return gate.would_reject


def near(found, wanted):
    return found == pytest.approx(wanted, rel=0.2, abs=5)


@pytest.mark.parametrize("load", [0.5, 0.9, 1.1, 1.5, 4.0])
def test_the_shadow_counts_what_enforcing_refuses_under_load(load):
    people = list(arrivals(load, 12, seed=7))
    well = lambda _: False
    truth = enforced(new_gate(), people, well)
    gate = new_gate()
    counted = shadowed(gate, people, well)
    assert near(sum(counted.values()), sum(truth.values())), (counted, truth)
    for reason in {*counted, *truth}:
        assert near(counted.get(reason, 0), truth.get(reason, 0)), (counted, truth)
    assert gate.rejected == {}
    assert (gate.bulkhead.taken, gate.unslotted, gate.slots_of_ended, gate.outside) == (0, 0, 0, {})


@pytest.mark.parametrize("load", [0.3, 0.9, 1.5])
def test_the_shadow_counts_what_an_open_circuit_refuses(load):
    """Five seconds of failures: the circuit opens, half-opens again and again, and closes at the end."""
    people = list(arrivals(load, 12, seed=3))
    ill = lambda at: 3 < at < 8
    policy = BreakerPolicy(wait_duration_in_open_state=1.0)
    first, second = new_gate(policy), new_gate(policy)
    truth, counted = enforced(first, people, ill), shadowed(second, people, ill)
    for reason in {*counted, *truth}:
        assert near(counted.get(reason, 0), truth.get(reason, 0)), (counted, truth)
    assert second.breaker.state == first.breaker.state == "closed"
    assert second.breaker.failed == pytest.approx(first.breaker.failed, rel=0.2, abs=5)
