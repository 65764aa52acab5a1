"""What a replay has found: sums by route and over time, and the periods of open circuits. Pure."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from guardrails.simulation.settings import Policy

__all__ = ["SLICES", "WHOLE", "Opening", "Replay", "RouteSums"]

WHOLE = "pool"
"""The name of the guard itself; compartments have the names of their routes."""

SLICES = 240
"""Parts of the trace for which the sums over time are kept."""


class Opening(NamedTuple):
    """A period in which a circuit was not closed.

    Attributes:
        guard: The name of the route, or `WHOLE`.
        at: Seconds from the start of the trace.
        seconds: Its length, probes and reopenings included.
        cause: The cause of the first opening.
        rounds: The number of half-open rounds.
        ended: False if the circuit was not closed at the end of the trace.
    """

    guard: str
    at: float
    seconds: float
    cause: str
    rounds: int
    ended: bool


@dataclass
class RouteSums:
    """The sums of one route, or of all.

    Attributes:
        calls: Calls in the trace.
        admitted: Those that were admitted.
        stopped: Those of them that were stopped at the timeout.
        refused: Refusals by reason.
        refused_good: Refused calls that succeeded in the trace, and were not slow.
        refused_bad: Refused calls that failed or were slow in the trace.
        waits: The waits of admitted calls for a slot in seconds, without those of 0.
    """

    calls: int = 0
    admitted: int = 0
    stopped: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refused_good: int = 0
    refused_bad: int = 0
    waits: array[float] = field(default_factory=lambda: array("d"))

    def wait(self, share: float) -> float:
        """The wait that this share of the admitted calls did not exceed."""
        place = int(share * self.admitted) - (self.admitted - len(self.waits))
        return sorted(self.waits)[min(place, len(self.waits) - 1)] if self.waits and place >= 0 else 0.0

    def __iadd__(self, other: RouteSums) -> Self:
        self.calls += other.calls
        self.admitted += other.admitted
        self.stopped += other.stopped
        self.refused.update(other.refused)
        self.refused_good += other.refused_good
        self.refused_bad += other.refused_bad
        self.waits.extend(other.waits)
        return self


@dataclass
class Replay:
    """What a guard would have done.

    Attributes:
        policy: Its settings.
        routes: The sums by route.
        openings: The periods in which a circuit was not closed, by their moment.
        most_in_use: The largest number of slots in use at once.
        held: Seconds for which slots were held, in sum.
        slice: Seconds of each part of the time.
        admitted: Calls that were admitted in each part.
        refused: Calls that were refused in each part.
        in_use: The largest number of slots in use in each part.
    """

    policy: Policy
    routes: dict[str, RouteSums]
    slice: float
    openings: list[Opening] = field(default_factory=list)
    most_in_use: int = 0
    held: float = 0.0
    admitted: list[int] = field(default_factory=lambda: [0] * SLICES)
    refused: list[int] = field(default_factory=lambda: [0] * SLICES)
    in_use: list[int] = field(default_factory=lambda: [0] * SLICES)

    def total(self) -> RouteSums:
        """The sums of all routes."""
        total = RouteSums()
        for sums in self.routes.values():
            total += sums
        return total
