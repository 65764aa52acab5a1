"""Runs a simulated fleet under changing demand and faults. Depends on the model of a fleet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guardrails._util.checks import Faults, shown
from guardrails.errors import ConfigurationError
from guardrails.fleet._records import MOST_CONNECTIONS
from guardrails.simulation.fleet_model import SimulatedFleet
from guardrails.simulation.fleet_sums import FleetSums
from guardrails.simulation.fleet_worker import Worker

__all__ = ["FAULTS", "FleetPlan", "FleetRun", "run_fleet"]

FAULTS = ("crash", "partition", "frozen-store", "clock-drift", "rolling-deploy", "dying-database")
"""The last one is a run of its own; see `guardrails.simulation.verdict_run`."""

_DEMANDS = ((0.0, 30), (0.25, 25), (0.5, 20), (1.0, 12), (3.0, 9), (8.0, 4))
"""Demands of a worker in equal shares of the budget, with their weights: most are idle, a few need much."""

_MEAN_CHANGE = 300.0
"""Seconds between two changes of a worker's demand, on average."""

_START = 10.0
"""Seconds in which the workers start."""

_SAMPLES = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """What is simulated.

    Attributes:
        workers: Workers that live at the same time.
        budget: Connections of all together.
        minimum: The floor of each worker.
        hours: Virtual time.
        faults: Some of `FAULTS`.
        seed: Of everything that is random.

    Raises:
        ConfigurationError: A value is wrong; all faults are named at once.
    """

    workers: int
    budget: int
    minimum: int = 1
    hours: float = 1.0
    faults: tuple[str, ...] = ()
    seed: int = 1

    def __post_init__(self) -> None:
        faults = Faults("fleet")
        faults.count("workers", self.workers, most=100_000)
        faults.count("budget", self.budget, most=MOST_CONNECTIONS)
        faults.count("minimum", self.minimum, most=self.budget)
        faults.number("hours", self.hours, 0.01, 1000)
        for fault in self.faults:
            if fault not in FAULTS:
                faults.add("faults", fault, f"some of {', '.join(FAULTS)}")
        faults.raise_if_any()
        if self.workers * self.minimum > self.budget:
            raise ConfigurationError(
                f"fleet: {self.workers} workers need at least {self.minimum} connections each, more than the "
                f"budget of {shown(self.budget)}"
            )


@dataclass(frozen=True, slots=True)
class FleetRun:
    """What a run has found.

    Attributes:
        plan: What was simulated.
        sums: What was counted.
        events: The faults and deploys, with their moments in seconds from the start.
        skipped: Renewals that changed nothing and were only counted.
    """

    plan: FleetPlan
    sums: FleetSums
    events: list[tuple[float, str]]
    skipped: int


def run_fleet(plan: FleetPlan, *, skips: bool = True) -> FleetRun:
    """Runs a fleet.

    Args:
        plan: What is simulated.
        skips: False to compute every renewal, also those that change nothing.
    """
    return _Run(plan, skips=skips).run()


class _Run:
    """One run: changes the demand, and makes the faults."""

    def __init__(self, plan: FleetPlan, *, skips: bool) -> None:
        self.plan, self.seconds = plan, plan.hours * 3600
        share = plan.budget / plan.workers
        self.fleet = SimulatedFleet(
            plan.seed,
            budget=plan.budget,
            static=plan.budget // plan.workers,
            minimum=plan.minimum,
            most=max(plan.minimum, min(plan.budget, round(10 * share))),
            drift=0.05 if "clock-drift" in plan.faults else 0.0,
            skips=skips,
        )
        self.dice = self.fleet.random
        self.share = share
        self.events: list[tuple[float, str]] = []

    def run(self) -> FleetRun:
        fleet, plan = self.fleet, self.plan
        for _ in range(plan.workers):
            fleet.after(self.dice.uniform(0, _START), self._start, None)
        makers: dict[str, Callable[[], None]] = {
            "crash": self._crash,
            "partition": self._partition,
            "frozen-store": self._freeze,
            "rolling-deploy": self._deploy,
        }
        pauses = {"crash": 60.0, "partition": 180.0, "frozen-store": 300.0, "rolling-deploy": 1200.0}
        for fault in plan.faults:
            if fault in makers:
                pause = min(pauses[fault], self.seconds / 3)
                fleet.after(
                    _START + self.dice.uniform(0.3, 1) * pause, self._make, None, makers[fault], pause
                )
        fleet.after(0.0, self._sample, None)
        fleet.run(self.seconds)
        skipped = 0 if fleet.resting is None else fleet.resting.skipped
        return FleetRun(plan, fleet.sums, self.events, skipped)

    def _sample(self) -> None:
        fleet = self.fleet
        fleet.count_all()
        fleet.sums.sample(fleet.now, len(fleet.workers), fleet.open)
        fleet.after(self.seconds / _SAMPLES, self._sample, None)

    # --- demand --------------------------------------------------------------------------------------

    def _demand(self) -> int:
        (level,) = self.dice.choices([level for level, _ in _DEMANDS], [weight for _, weight in _DEMANDS])
        return round(level * self.share * self.dice.uniform(0.7, 1.3))

    def _start(self) -> Worker:
        worker = self.fleet.join(self._demand())
        self.fleet.after(self._pause(), self._change, worker, worker)
        return worker

    def _pause(self) -> float:
        return self.dice.expovariate(1 / _MEAN_CHANGE)

    def _change(self, worker: Worker) -> None:
        if not worker.leaving:
            worker.set_demand(self._demand())
            self.fleet.after(self._pause(), self._change, worker, worker)

    # --- faults --------------------------------------------------------------------------------------

    def _make(self, maker: Callable[[], None], pause: float) -> None:
        maker()
        self.fleet.after(pause * self.dice.uniform(0.7, 1.3), self._make, None, maker, pause)

    def _note(self, words: str) -> None:
        self.events.append((self.fleet.now - self.fleet.sums.start, words))

    def _some(self, most: float) -> list[Worker]:
        """Returns up to a fraction of the workers, at least one."""
        workers = list(self.fleet.workers.values())
        many = max(1, int(len(workers) * self.dice.uniform(0, most)))
        return self.dice.sample(workers, min(many, len(workers)))

    def _crash(self) -> None:
        victims = self._some(0.02)
        for worker in victims:
            self.fleet.kill(worker)
            self.fleet.after(self.dice.uniform(1, 10), self._start, None)
        self._note(f"{len(victims)} killed")

    def _partition(self) -> None:
        cut, seconds = self._some(0.2), self.dice.uniform(2, 40)
        for worker in cut:
            self.fleet.cut_off(worker, cut=True)
            self.fleet.after(seconds, self._heal, worker, worker)
        self._note(f"{len(cut)} cut off for {seconds:.0f} s")

    def _heal(self, worker: Worker) -> None:
        self.fleet.cut_off(worker, cut=False)

    def _freeze(self) -> None:
        seconds = self.dice.uniform(1, 30)
        self.fleet.freeze(seconds)
        self._note(f"the store stands still for {seconds:.0f} s")

    def _deploy(self) -> None:
        workers = list(self.fleet.workers.values())
        seconds = min(300.0, self.seconds / 6)
        for place, worker in enumerate(workers):
            self.fleet.after(seconds * place / len(workers), self._drain, worker, worker)
        self._note(f"all {len(workers)} replaced, one after the other, in {seconds:.0f} s")

    def _drain(self, worker: Worker) -> None:
        worker.leaving = True
        worker.set_demand(0)
        self.fleet.after(3 * self.fleet.hold, self.fleet.leave_orderly, worker, worker)
        self._start()
