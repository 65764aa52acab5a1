"""A fleet that judges one dependency together, in virtual time: real guards, and a database that fails.

Depends on guards and the rule of verdicts. Only the clock, the network and the database are simulated.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardrails._core.gate import Refusal
from guardrails._core.outcome import Outcome
from guardrails._core.policy import BreakerPolicy
from guardrails._guard.guard import guard_of_settings, switch
from guardrails.events import Event, StateChanged
from guardrails.fleet._guard_verdict import GuardVerdict
from guardrails.fleet._rulings import VerdictRequest
from guardrails.fleet._verdict import VerdictTable
from guardrails.fleet._worker import Identity
from guardrails.simulation.real_guard import quiet

__all__ = ["CircuitChange", "VerdictPlan", "VerdictRun", "run_verdict"]

_TICK = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictPlan:
    """What is simulated.

    Attributes:
        workers: The number of workers.
        rate: Calls a second of each.
        seconds: Virtual time.
        fails_from: When the database begins to fail, in seconds.
        fails_until: When it works again.
        broken: The number of workers whose own network fails all the time.
        together: False: each worker has its own circuit only.
        policy: The rules of the circuits.
        seed: Of everything that is random.
    """

    workers: int
    rate: float = 1.0
    seconds: float = 90.0
    fails_from: float = 30.0
    fails_until: float = 60.0
    broken: int = 0
    together: bool = True
    policy: BreakerPolicy = field(default_factory=BreakerPolicy)
    seed: int = 1


@dataclass(frozen=True, slots=True)
class CircuitChange:
    """One transition of one worker's circuit."""

    at: float
    worker: int
    old: str
    new: str
    cause: str


@dataclass
class VerdictRun:
    """What a run has found.

    Attributes:
        plan: What was simulated.
        changes: The transitions of all circuits.
        reached: When the windows of all workers together reached a threshold first; None if they never did.
        probes: The moments of calls that were admitted by a circuit that was half-open.
        admitted: Calls that were admitted while the database failed, and ``refused`` those that were not.
        refused_after: Calls that were refused after it worked again.
    """

    plan: VerdictPlan
    changes: list[CircuitChange] = field(default_factory=list)
    reached: float | None = None
    probes: list[float] = field(default_factory=list)
    admitted: int = 0
    refused: int = 0
    refused_after: int = 0

    def opened(self) -> dict[int, float]:
        """When the circuit of each worker opened first; workers whose circuit stayed closed are missing."""
        first: dict[int, float] = {}
        for change in self.changes:
            if change.new == "open":
                first.setdefault(change.worker, change.at)
        return first

    def closed(self) -> float | None:
        """When the last circuit closed that closed for good; None if one was not closed at the end."""
        last = {change.worker: change for change in self.changes}
        if any(change.new != "closed" for change in last.values()):
            return None
        return max((change.at for change in last.values()), default=None)

    def rounds(self) -> list[int]:
        """The number of probes of each round of the fleet; a round ends when a circuit opens or closes."""
        ends = sorted(change.at for change in self.changes if change.old == "half_open")
        counts: list[int] = []
        before = 0.0
        for end in ends:
            counts.append(sum(before < at <= end for at in self.probes))
            before = end
        return [count for count in counts if count]


def run_verdict(plan: VerdictPlan) -> VerdictRun:
    """Runs workers in front of a database that fails for a while."""
    with quiet():
        return _Run(plan).run()


class _Worker:
    """One process: its guard, and its part in the verdict."""

    def __init__(self, run: _Run, number: int) -> None:
        self.run, self.number = run, number
        self.guard = guard_of_settings(
            "simulated",
            1000,
            max_wait_duration=0,
            max_waiting=None,
            timeout=None,
            breaker=run.plan.policy,
            listeners=[self.note],
            clock=lambda: run.now,
            random=run.dice.random,
        )
        switch(self.guard, "enforce")  # whatever the environment says
        self.gate = self.guard.call_settings.gates[0]
        self.is_broken = number < run.plan.broken
        self.identity = Identity(f"w{number:06}", f"{number:x}", "")
        nobody: Any = None  # it joins no thread
        self.verdict = GuardVerdict("simulated", self.guard, nobody, lambda: run.now)

    def note(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            change = CircuitChange(event.at, self.number, event.old, event.new, event.cause)
            self.run.result.changes.append(change)

    def tick(self) -> None:
        run = self.run
        if self.verdict.tick(run.now):
            request = self.verdict.request(self.identity)
            run.after(run.delay(), self.receive, request)
        run.after(_TICK, self.tick)

    def receive(self, request: VerdictRequest) -> None:
        ruling = self.run.table.judge(request, int((1000 + self.run.now) * 1000))
        self.run.after(self.run.delay(), self.verdict.take_reply, ruling)

    def call(self) -> None:
        run, slot = self.run, [0]
        run.after(run.dice.expovariate(run.plan.rate), self.call)
        fails = self.is_broken or run.plan.fails_from <= run.now < run.plan.fails_until
        verdict = self.gate.request_slot(slot, None, checkout=False)
        if isinstance(verdict, Refusal):
            run.result.refused += fails
            run.result.refused_after += run.now >= run.plan.fails_until and not self.is_broken
            return
        run.result.admitted += fails
        if self.guard.state == "half_open":
            run.result.probes.append(run.now)
        outcome = Outcome.FAILURE if fails else Outcome.SUCCESS
        run.after(run.dice.uniform(0.005, 0.05), self.gate.end, slot[0], outcome, 1)


class _Run:
    def __init__(self, plan: VerdictPlan) -> None:
        self.plan = plan
        self.dice = random.Random(plan.seed)  # noqa: S311 - a simulation repeats itself by its seed
        self.now = 0.0
        self.table = VerdictTable()
        self.result = VerdictRun(plan)
        self._events: list[tuple[float, int, Callable[..., object], Sequence[Any]]] = []
        self._numbers = 0
        self.workers = [_Worker(self, number) for number in range(plan.workers)]

    def after(self, seconds: float, what: Callable[..., object], *args: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (self.now + seconds, self._numbers, what, args))

    def delay(self) -> float:
        return self.dice.uniform(0.0005, 0.02)

    def run(self) -> VerdictRun:
        for worker in self.workers:
            self.after(self.dice.expovariate(self.plan.rate), worker.call)
            if self.plan.together:
                self.after(self.dice.uniform(0, _TICK), worker.tick)
        self.after(self.plan.fails_from, self._look)
        while self._events[0][0] <= self.plan.seconds:
            self.now, _, what, args = heapq.heappop(self._events)
            what(*args)
        for worker in self.workers:  # nothing of them is left when the simulation ends
            worker.gate.core.drop_calls_and_waiters()
        return self.result

    def _look(self) -> None:
        """Notes when all windows together reach a rate."""
        seen = [worker.gate.core.breaker.evidence(self.now) for worker in self.workers]
        calls, failures = sum(each[0] for each in seen), sum(each[1] for each in seen)
        policy = self.plan.policy
        if calls >= policy.minimum_number_of_calls and failures >= policy.failure_rate_threshold * calls:
            self.result.reached = self.now
        else:
            self.after(_TICK, self._look)
