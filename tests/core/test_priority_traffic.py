"""Overload by traffic of several classes at ten slots, in fake time: the shares that are served."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter

import pytest

from guardrails._core.breaker import Breaker
from guardrails._core.bulkhead import Bulkhead, Waiter
from guardrails._core.criticality import CRITICAL
from guardrails._core.gate import Gate
from guardrails._core.outcome import Outcome

SHEDDABLE = 0


def simulate(arrivals, seconds=60.0, service=0.1):  # noqa: C901 - one world
    """Poisson arrivals at ten slots in fake time, waiting as `LockedGate` lets them; the shares served."""
    dice = random.Random(7)
    gate = Gate(Breaker(None, lambda: 0.5), Bulkhead(10, 10))
    offered, served = Counter(), Counter()
    events, order = [], itertools.count()
    push = lambda at, kind, what: heapq.heappush(events, (at, next(order), kind, what))
    for rank, rate in arrivals.items():
        at = dice.expovariate(rate)
        while at < seconds:
            push(at, "come", rank)
            at += dice.expovariate(rate)

    def admit(verdict, rank, now):
        if isinstance(verdict, int):
            served[rank] += 1
            push(now + service, "go", verdict)

    def come(rank, now):
        offered[rank] += 1
        waiter = Waiter()
        verdict = gate.enter(now, waiter, rank)
        admit(verdict, rank, now)
        if verdict is None:
            push(now + gate.bulkhead.wait_limit(0.05, now, rank), "late", waiter)

    while events:
        now, _, kind, what = heapq.heappop(events)
        if kind == "come":
            come(what, now)
        elif kind == "go":
            gate.leave(now, what, Outcome.SUCCESS)
        elif what.verdict is None:
            gate.woken(now, what)
        woken, gate.outbox[:] = list(gate.outbox), []
        for waiter in woken:
            admit(gate.woken(now, waiter), waiter.rank, now)
    assert gate.bulkhead.taken == 0
    return {rank: served[rank] / offered[rank] for rank in arrivals}, served


@pytest.mark.parametrize("critical", [20, 40])
def test_sheddable_traffic_at_five_times_the_capacity_leaves_critical_traffic_alone(critical):
    """With CRITICAL traffic up to its guarantee; SHEDDABLE calls get most of the rest."""
    ratios, served = simulate({CRITICAL: critical, SHEDDABLE: 500})
    assert ratios[CRITICAL] >= 0.99
    assert served.total() >= 60 * 65


def test_critical_traffic_at_five_times_the_capacity_leaves_sheddable_its_guarantee():
    """Its one slot."""
    _, served = simulate({CRITICAL: 500, SHEDDABLE: 20})
    assert served[SHEDDABLE] >= 0.5 * 60 / 0.1
