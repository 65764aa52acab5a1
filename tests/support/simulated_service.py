"""A service in fake time: workloads that share one pool, tables that are locked, a database that is down."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from types import SimpleNamespace

from guardrails import Guard
from guardrails._core.outcome import Outcome
from guardrails._guard.compartments import compartment_for, form_compartments
from guardrails._guard.guard import attach
from guardrails.errors import RejectedError

QUICK = 0.02
services = []
"""Those of the test."""

TIMEOUT = 5.0


class Service:
    """One process, its pool and its guard.

    Args:
        slots: Connections of the pool.
        compartments: ``"auto"`` or ``"declared"``.
        names: The workloads; ``"direct"`` is what runs past all compartments.
        query_first: Whether each call makes a quick query before the one that the answers are for.
        options: For the guard.
    """

    def __init__(self, slots, names, *, compartments="declared", query_first=False, **options):
        self.now = 0.0
        self.query_first = query_first
        self.guard = Guard(
            "db",
            max_concurrent_calls=slots,
            max_wait_duration=0,
            timeout=TIMEOUT,
            clock=lambda: self.now,
            random=lambda: 0.5,
            listeners=[self.note],
            **options,
        )
        if compartments == "auto":
            form_compartments(self.guard)
        attach(
            self.guard,
            SimpleNamespace(most=slots, upkeep=None, detach=lambda: None, figures=lambda: None),
        )
        self.parts = {}
        for name in names:
            if name == "direct":
                self.parts[name] = self.guard
            elif compartments == "auto":
                self.parts[name] = compartment_for(self.guard, name)
            else:
                self.parts[name] = self.guard.compartment(name)
        self.answers = dict.fromkeys(names, quick)
        self.refused = Counter()
        self.served = Counter()
        self.changes = []
        self.events = []
        self.order = itertools.count()
        self.closing = False
        services.append(self)

    def note(self, event):
        if hasattr(event, "cause"):
            self.changes.append(
                (round(event.at, 3), event.compartment or event.guard, event.new, event.cause)
            )

    def at(self, moment, action):
        heapq.heappush(self.events, (moment, next(self.order), action))

    def traffic(self, name, rate, *, until, poisson=None, start=0.0):
        """Calls of a workload from ``start`` on: regular, or with a random generator a Poisson stream."""
        moment = start
        while moment < until:
            self.at(moment, lambda: self.call(name))
            moment += 1 / rate if poisson is None else poisson.expovariate(rate)

    def call(self, name, patience=2):
        """One checkout with one statement; where the pool is full it is tried again 25 and 50 ms later."""
        if self.closing:
            return
        gates, held = self.parts[name].call_settings.gates, []
        try:
            for gate in gates:
                held += [(gate, gate.check_out_now())]
        except RejectedError as error:
            for gate, slot in reversed(held):
                gate.check_in(slot)
            if patience and error.reason == "bulkhead_full":
                self.at(self.now + 0.025, lambda: self.call(name, patience - 1))
            else:
                self.refused[name, error.compartment or error.guard, error.reason] += 1
            return
        if self.query_first:
            tickets = [(gate, gate.begin(slot), slot) for gate, slot in held]
            self.at(self.now + QUICK / 4, lambda: self.query(name, held, tickets))
        else:
            self.query(name, held, ())

    def query(self, name, held, before):
        """Begins the query that may hang, after an earlier one of its transaction."""
        for gate, ticket, slot in reversed(before):
            gate.end(ticket, Outcome.SUCCESS, 0, slot)
        try:
            tickets = [(gate, gate.begin(slot), slot) for gate, slot in held]
        except RejectedError as error:
            for gate, slot in reversed(held):
                gate.check_in(slot)
            self.refused[name, error.compartment or error.guard, error.reason] += 1
            return
        duration, outcome = self.answers[name](self.now)
        self.at(self.now + duration, lambda: self.end(name, held, tickets, outcome))

    def end(self, name, held, tickets, outcome):
        for gate, ticket, slot in reversed(tickets):
            gate.end(ticket, outcome, 0, slot)
        for gate, slot in reversed(held):
            gate.check_in(slot)
        self.served[name] += outcome is Outcome.SUCCESS

    def run(self, until):
        while self.events and self.events[0][0] <= until:
            self.now, _, action = heapq.heappop(self.events)
            action()
        self.now = until

    def close(self):
        """Lets everything under way end."""
        self.closing = True
        self.run(math.inf)

    def opened(self, after=0.0):
        """When the whole guard's circuit opened first; None if it never did."""
        return next(
            (at for at, who, new, _ in self.changes if at >= after and (who, new) == ("db", "open")), None
        )

    def shut_out(self, name):
        """Refusals of a workload by the circuit of the whole guard."""
        return self.refused[name, "db", "circuit_open"]


def quick(_now):
    return QUICK, Outcome.SUCCESS


def refuses(_now):
    return 0.001, Outcome.FAILURE


def frozen(_now):
    return TIMEOUT, Outcome.FAILURE


def locked(until):
    """Answers of a table that is locked until a moment."""

    def answer(now):
        left = until - now
        if left <= 0:
            return quick(now)
        return (left, Outcome.SUCCESS) if left < TIMEOUT else (TIMEOUT, Outcome.FAILURE)

    return answer


def generator(seed):
    return random.Random(seed)
