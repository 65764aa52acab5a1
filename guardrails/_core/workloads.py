"""Whose trouble it is when a circuit has compartments: one workload's, or everybody's. Knows no slots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from guardrails._core.window import NEVER, Window

__all__ = ["Ratio", "Workload", "is_everybodys", "reaches", "spreads"]

Ratio = tuple[int, int]


class Circuit(Protocol):
    """The circuit of a compartment, as its parent's circuit sees it."""

    @property
    def state(self) -> str:
        """The name of its state."""


class Workload:
    """The parent circuit's record of one compartment's calls, or of those made past all compartments.

    Args:
        circuit: The compartment's own circuit; None for the direct calls.
        window: Its part of the parent's window, empty.

    Attributes:
        good_at: When a call of it came back last, slow ones included.
        bad: Failures and slow calls since its last success in time.
        bad_since: When the first of them began to be known as such.
        unwritten: Successes that the window does not have yet.
        places: Where the slow marks of its overdue calls are in the window, by ticket.
        suspect: Whether its own figures were bad when the parent's circuit opened.
    """

    __slots__ = ("bad", "bad_since", "circuit", "good_at", "places", "suspect", "unwritten", "window")

    def __init__(self, circuit: Circuit | None, window: Window) -> None:
        self.circuit = circuit
        self.window = window
        self.suspect = False
        self.good_at = self.bad_since = NEVER
        self.bad = self.unwritten = 0
        self.places: dict[int, int] = {}

    def write_down(self) -> None:
        """Adds the successes that came the fast path to the window."""
        count, self.unwritten = self.unwritten, 0
        if count:
            self.window.add_unmarked(count)

    def succeed(self, now: float, *, slow: bool) -> None:
        """Notes that a call came back well."""
        self.good_at = now
        if not slow:
            self.bad = 0

    def complain(self, since: float) -> None:
        """Notes one more failure or slow call, which began to be one at ``since``."""
        if not self.bad:
            self.bad_since = since
        self.bad += 1

    def learn(self, mark: int) -> int:
        """Adds a call to the window; returns its place."""
        self.write_down()
        return self.window.add(mark)

    def forget(self) -> None:
        """Forgets the figures, not how the last call went."""
        self.window.clear()
        self.places.clear()
        self.unwritten = 0

    def forget_all(self) -> None:
        """Forgets everything."""
        self.forget()
        self.bad, self.good_at, self.suspect = 0, NEVER, False

    @property
    def heard(self) -> bool:
        """True if it has said anything yet."""
        return self.bad > 0 or self.good_at != NEVER

    @property
    def sick(self) -> bool:
        """True if its own circuit has opened."""
        return self.circuit is not None and self.circuit.state in {"open", "half_open"}

    @property
    def trusted(self) -> bool:
        """True if nothing speaks against it, so that its parent's open circuit does not refuse it."""
        return not self.bad and not self.suspect and not self.sick

    def silent(self, now: float, slow_after: float) -> bool:
        """True if nothing has come back for a whole slow-call threshold, and something should have."""
        return self.bad > 0 and now - self.good_at >= slow_after

    def in_trouble(self, now: float, slow_after: float, least: int, failure: Ratio, slow: Ratio) -> bool:
        """True if its own calls alone say that it does not work."""
        if self.sick or self.silent(now, slow_after):
            return True
        return self.window.calls >= least and spreads((self,), failure, slow)


def is_everybodys(
    heard: list[Workload], now: float, slow_after: float, least: int, failure: Ratio, slow: Ratio
) -> bool:
    """True if a rate that was reached by all workloads together is more than the trouble of some.

    What remains without those in trouble and without the worst of the others must reach it, too.
    """
    well = [one for one in heard if not one.in_trouble(now, slow_after, least, failure, slow)]
    if len(heard) == 1 or not well:
        return True
    if len(well) > 1:
        well.remove(max(well, key=lambda one: one.window.failures + one.window.slow))
    return spreads(well, failure, slow)


def has_spread(heard: Iterable[Workload], now: float, slow_after: float, least: int) -> bool:
    """True if trouble has reached two workloads, or all, and no other has come back since.

    Args:
        heard: The workloads that have said anything yet.
        now: The moment.
        slow_after: The slow-call threshold.
        least: How many bad calls are enough, unless a compartment's own circuit has opened for them.
    """
    silent = [one for one in heard if one.silent(now, slow_after)]
    rest = [one for one in heard if one not in silent]
    sick = any(one.sick for one in silent)
    if len(silent) < 2 and (rest or not sick):  # noqa: PLR2004 - of one it is its own trouble
        return False
    since = max(one.bad_since for one in silent)
    if any(one.good_at >= since for one in rest):
        return False
    return sick or sum(one.bad for one in silent) >= least


def spreads(workloads: Iterable[Workload], failure: Ratio, slow: Ratio) -> bool:
    """True if the calls of these workloads together reach one of the two rates."""
    calls = failures = slow_calls = 0
    for one in workloads:
        calls += one.window.calls
        failures += one.window.failures
        slow_calls += one.window.slow
    return reaches(failures, calls, failure) or reaches(slow_calls, calls, slow)


def reaches(part: int, whole: int, threshold: Ratio) -> bool:
    """``part / whole >= threshold`` in whole numbers, where no rounding can flip a verdict."""
    numerator, denominator = threshold
    return part * denominator >= numerator * whole > 0
