"""Separates one workload's failures from the dependency's. Depends on windows; must not import slots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from guardrails._core.window import NEVER, Window

__all__ = [
    "Ratio",
    "Workload",
    "is_widespread_outage",
    "is_widespread_rate",
    "reach_a_rate",
    "reaches",
]

Ratio = tuple[int, int]
"""A threshold as numerator and denominator."""


class Circuit(Protocol):
    """The circuit of a compartment, as its parent's circuit sees it."""

    @property
    def state(self) -> str:
        """The name of its state."""


class Workload:
    """The parent circuit's record of one compartment's calls, or of the calls outside all compartments.

    Args:
        circuit: The compartment's own circuit; None for the calls outside all compartments.
        window: An empty window for its calls.

    Attributes:
        last_success_at: Time of the last success, slow ones included.
        bad_calls: Failures and slow calls since the last success that was not slow.
        bad_calls_since: Start of the first of them if it is slow, its end if it failed.
        pending_successes: Successes that have not been added to the window yet.
        slow_positions: Positions of the slow marks of overdue calls in the window, by ticket.
        suspect: True if its own figures were bad when the parent's circuit opened.
    """

    __slots__ = (
        "bad_calls",
        "bad_calls_since",
        "circuit",
        "last_success_at",
        "pending_successes",
        "slow_positions",
        "suspect",
        "window",
    )

    def __init__(self, circuit: Circuit | None, window: Window) -> None:
        self.circuit = circuit
        self.window = window
        self.suspect = False
        self.last_success_at = self.bad_calls_since = NEVER
        self.bad_calls = self.pending_successes = 0
        self.slow_positions: dict[int, int] = {}

    def flush_successes(self) -> None:
        """Adds to the window the successes that the fast path has only counted."""
        count, self.pending_successes = self.pending_successes, 0
        if count:
            self.window.add_unmarked(count)

    def note_success(self, now: float, *, slow: bool) -> None:
        """Notes a success."""
        self.last_success_at = now
        if not slow:
            self.bad_calls = 0

    def note_bad_call(self, since: float) -> None:
        """Notes a failure or a slow call that dates from ``since``."""
        if not self.bad_calls:
            self.bad_calls_since = since
        self.bad_calls += 1

    def add(self, mark: int) -> int:
        """Adds a call to the window and returns its position."""
        self.flush_successes()
        return self.window.add(mark)

    def clear_window(self) -> None:
        """Forgets the figures. Keeps how the latest calls ended."""
        self.window.clear()
        self.slow_positions.clear()
        self.pending_successes = 0

    def reset(self) -> None:
        """Forgets everything."""
        self.clear_window()
        self.bad_calls, self.last_success_at, self.suspect = 0, NEVER, False

    @property
    def has_results(self) -> bool:
        """True once a call of it has succeeded, failed or become overdue."""
        return self.bad_calls > 0 or self.last_success_at != NEVER

    @property
    def circuit_is_open(self) -> bool:
        """True if its own circuit is open or half-open."""
        return self.circuit is not None and self.circuit.state in {"open", "half_open"}

    @property
    def is_healthy(self) -> bool:
        """True if no evidence is against it, so that its parent's open circuit does not refuse it."""
        return not self.bad_calls and not self.suspect and not self.circuit_is_open

    def is_unresponsive(self, now: float, slow_after: float) -> bool:
        """True if a call failed or is overdue, and none has succeeded for one slow-call threshold."""
        return self.bad_calls > 0 and now - self.last_success_at >= slow_after

    def is_failing(self, now: float, slow_after: float, least: int, failure: Ratio, slow: Ratio) -> bool:
        """True if its own calls prove that it fails."""
        if self.circuit_is_open or self.is_unresponsive(now, slow_after):
            return True
        return self.window.calls >= least and reach_a_rate((self,), failure, slow)


def is_widespread_rate(
    active: list[Workload], now: float, slow_after: float, least: int, failure: Ratio, slow: Ratio
) -> bool:
    """True if the rate that all workloads reach together is not caused by a few of them.

    The rest, without those that fail and without the worst of the others, must reach it as well.
    """
    rest = [each for each in active if not each.is_failing(now, slow_after, least, failure, slow)]
    if len(active) == 1 or not rest:
        return True
    if len(rest) > 1:
        rest.remove(max(rest, key=lambda each: each.window.failures + each.window.slow))
    return reach_a_rate(rest, failure, slow)


def is_widespread_outage(active: Iterable[Workload], now: float, slow_after: float, least: int) -> bool:
    """True if two workloads, or all, are unresponsive and no other has had a success since.

    Args:
        active: The workloads that have results.
        now: The moment.
        slow_after: The slow-call threshold in seconds.
        least: Bad calls needed, unless the circuit of an unresponsive compartment has opened.
    """
    unresponsive = [each for each in active if each.is_unresponsive(now, slow_after)]
    rest = [each for each in active if each not in unresponsive]
    any_open = any(each.circuit_is_open for each in unresponsive)
    # One of several may fail for a reason of its own.
    if len(unresponsive) < 2 and (rest or not any_open):  # noqa: PLR2004
        return False
    since = max(each.bad_calls_since for each in unresponsive)
    if any(each.last_success_at >= since for each in rest):
        return False
    return any_open or sum(each.bad_calls for each in unresponsive) >= least


def reach_a_rate(workloads: Iterable[Workload], failure: Ratio, slow: Ratio) -> bool:
    """True if the calls of these workloads together reach the failure rate or the slow-call rate."""
    calls = failures = slow_calls = 0
    for each in workloads:
        calls += each.window.calls
        failures += each.window.failures
        slow_calls += each.window.slow
    return reaches(failures, calls, failure) or reaches(slow_calls, calls, slow)


def reaches(part: int, whole: int, threshold: Ratio) -> bool:
    """Computes ``part / whole >= threshold`` in integers, so that no rounding changes a verdict."""
    numerator, denominator = threshold
    return part * denominator >= numerator * whole > 0
