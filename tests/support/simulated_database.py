"""A database and the users that wait for it, in fake time, behind a gate of the core."""

from __future__ import annotations

import random

from guardrails._core.breaker import Transition
from guardrails._core.gate import Refusal
from guardrails._core.outcome import Outcome

STEP = 0.005
"""Seconds between two looks at the simulation."""


class Database:
    """Shares its capacity among the calls that run; a call that takes longer than ``timeout`` fails.

    Args:
        gate: The gate in front of it.
        users: Users who wait. Each calls, thinks for ``thinks`` seconds on average, and calls again.
        pace: ``(concurrent calls, database)`` -> the calls that it finishes in a second altogether.
        seed: Of the users' times and of the work.
        random_work: True if the work of a call varies at random (exponentially); else each has the same.

    Attributes:
        now: The time.
        warmth: From 0, all data are on the disk, to 1, all are in memory. Each call adds ``warming``.
        served: The times at which calls succeeded.
        openings: The times at which the circuit opened.
    """

    warming = 0.0

    def __init__(self, gate, users, pace, *, thinks=0.1, timeout=2.0, seed=1, random_work=False):
        self.gate, self.pace, self.timeout = gate, pace, timeout
        self.now, self.warmth, self.up = 0.0, 1.0, True
        self.served, self.openings = [], []
        self.running = {}
        self._dice, self._thinks = random.Random(seed), thinks
        self._calls_at = [self._dice.uniform(0, 2 * thinks) for _ in range(users)]
        self._random_work = random_work

    def run(self, until):
        while self.now < until:
            self.now += STEP
            self._work()
            self._come()
            self.openings += [
                item.at for item in self.gate.outbox if isinstance(item, Transition) and item.new == "open"
            ]
            self.gate.outbox.clear()

    def crash(self):
        """It answers nothing until it is back, and is cold then."""
        self.up, self.warmth = False, 0.0

    def come_back(self):
        self.up = True

    def _work(self):
        if not self.running:
            return
        each = STEP * self.pace(len(self.running), self) / len(self.running) if self.up else 0.0
        for ticket, (user, began, left) in list(self.running.items()):
            if left <= each:
                self._end(ticket, user, began, Outcome.SUCCESS)
            elif self.now - began >= self.timeout:
                self._end(ticket, user, began, Outcome.FAILURE)
            else:
                self.running[ticket] = user, began, left - each

    def _end(self, ticket, user, began, outcome):
        del self.running[ticket]
        self.gate.leave(self.now, ticket, outcome)
        self._think(user)
        if outcome is Outcome.SUCCESS:
            self.served.append(self.now)
            self.warmth = min(1.0, self.warmth + self.warming)

    def _come(self):
        for user, at in enumerate(self._calls_at):
            if at <= self.now:
                ticket = self.gate.enter(self.now, None)
                if isinstance(ticket, Refusal):
                    self._think(user)
                else:
                    self._calls_at[user] = float("inf")
                    work = self._dice.expovariate(1) if self._random_work else 1.0
                    self.running[ticket] = user, self.now, work

    def _think(self, user):
        self._calls_at[user] = self.now + self._dice.uniform(0.5, 1.5) * self._thinks

    def served_in(self, since, until):
        return sum(since <= at < until for at in self.served)
