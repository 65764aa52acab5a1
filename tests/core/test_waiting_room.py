"""The share of callers that are refused although there is capacity, computed in fake time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter

import pytest

from guardrails._core.breaker import Breaker
from guardrails._core.bulkhead import Bulkhead, Waiter
from guardrails._core.gate import Gate
from guardrails._core.outcome import Outcome

MAX_WAIT = 0.05


class Room:
    """A gate whose callers all stay for the same time, played in the order of events."""

    def __init__(self, slots, seconds, max_wait):
        self.gate = Gate(Breaker(None, random.random), Bulkhead(slots, slots if max_wait else 0))
        self.seconds = seconds
        self.max_wait = max_wait
        self.events = []
        self.waiting = set()
        self.order = itertools.count()

    def arrive(self, now):
        waiter = Waiter()
        verdict = self.gate.enter(now, waiter)
        if verdict is None:
            self.waiting.add(waiter)
            self.plan(now + self.gate.bulkhead.wait_limit(self.max_wait, now), waiter)
        else:
            self.begin(now, verdict)

    def begin(self, now, verdict):
        if isinstance(verdict, int):
            self.plan(now + self.seconds, verdict)

    def plan(self, at, what):
        heapq.heappush(self.events, (at, next(self.order), what))

    def pass_until(self, now):
        while self.events and self.events[0][0] <= now:
            at, _, what = heapq.heappop(self.events)
            if isinstance(what, int):
                self.gate.leave(at, what, Outcome.SUCCESS)
                woken, self.gate.outbox = self.gate.outbox, []
            else:
                woken = [what]
            for waiter in self.waiting.intersection(woken):
                self.waiting.discard(waiter)
                self.begin(at, self.gate.woken(at, waiter))


def refused(slots, seconds, utilisation, max_wait=MAX_WAIT, arrivals=30_000):
    """By reason, the share of Poisson arrivals that are refused."""
    room, dice, now = Room(slots, seconds, max_wait), random.Random(7), 0.0
    for _ in range(arrivals):
        now += dice.expovariate(utilisation * slots / seconds)
        room.pass_until(now)
        room.arrive(now)
    return Counter({reason: count / arrivals for reason, count in room.gate.rejected.items()})


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seconds", [0.005, 0.01, 0.02, 0.05])
def test_fewer_than_1_in_1000_callers_are_refused_at_80_percent_load(seconds):
    """SQLAlchemy's default pool of 15 and common query durations."""
    assert refused(15, seconds, 0.8).total() < 0.001


def test_without_a_queue_many_are_refused():
    """Erlang's formula gives 8.0 % here, and 2.0 % at 60 %."""
    assert refused(15, 0.02, 0.8, max_wait=0).total() == pytest.approx(0.080, abs=0.01)
    assert refused(15, 0.02, 0.6, max_wait=0).total() == pytest.approx(0.020, abs=0.005)


@pytest.mark.sampled
@pytest.mark.parametrize("slots", [4, 10, 50])
@pytest.mark.parametrize("times", [1.5, 3, 10])
def test_overload_leaves_no_slot_idle_and_few_callers_time_out(slots, times):
    """Every slot is always busy, and most callers that cannot be served are refused at once."""
    reasons = refused(slots, 0.05, times)
    assert times * (1 - reasons.total()) > 0.98
    if times == 10:
        assert reasons["queue_timeout"] < 0.1


def test_one_caller_at_a_time_waits_for_a_hung_dependency():
    """Of 1,000 callers a second, for 5 ms."""
    assert refused(10, 1000.0, 1_000_000, arrivals=10_000)["queue_timeout"] < 0.25
