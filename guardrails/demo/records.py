"""What the demo writes down while it runs: users, their tries, and looks at the twins.

Knows no arithmetic beyond the obvious; `guardrails.demo.figures` does the sums.
All instants are seconds from the start of the load.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from guardrails.demo.selfcheck import Check

__all__ = ["Arrival", "Look", "Run", "Transition", "Try", "Twin", "User"]

Answer = Literal["ok", "rejected", "error", "timeout"]
"""``ok`` 2xx; ``rejected`` a 503 with problem+json; ``error`` any other answer or a broken
connection; ``timeout`` nothing within the client's patience."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A user who is about to come: when, to which endpoint, and a number that seeds his patience."""

    at: float
    path: str
    number: int


@dataclass(frozen=True, slots=True)
class Try:
    """One request.

    Attributes:
        meant_at: When it should have been sent; a generator that is late is not forgiven.
        seconds: From then to the answer, or to the end of the client's patience.
        answer: What came of it.
    """

    meant_at: float
    seconds: float
    answer: Answer

    @property
    def ended_at(self) -> float:
        """When the answer, or the end of patience, came."""
        return self.meant_at + self.seconds


@dataclass(frozen=True, slots=True)
class User:
    """One arrival and all that came of it, told when the story is over."""

    arrival: Arrival
    tries: tuple[Try, ...]

    @property
    def served(self) -> bool:
        """Whether the last try was answered well."""
        return self.tries[-1].answer == "ok"

    @property
    def seconds(self) -> float:
        """From the arrival to the good answer, or to giving up."""
        return self.tries[-1].ended_at - self.arrival.at


@dataclass(frozen=True, slots=True)
class Look:
    """What a twin said of itself at one instant."""

    at: float
    in_flight: int
    checked_out: int
    waiting: int
    states: dict[str, str]


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a guard's state."""

    at: float
    guard: str
    old: str
    new: str


@dataclass(slots=True)
class Twin:
    """Everything noted about one twin.

    Attributes:
        name: ``"plain"`` or ``"guarded"``.
        users: Stories that have ended, in the order of their ends.
        tries: Tries of the main endpoint that have ended, in the order of their ends.
        looks: Regular looks at the twin.
        changes: The guards' changes of state.
        max_in_flight: Most requests inside the app at once; None when the twin never said.
        max_checked_out: Most connections out of the pool at once.
        queries_left_running: Queries in the database 1 s after the load ended.
    """

    name: str
    users: list[User] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    changes: list[Transition] = field(default_factory=list)
    max_in_flight: int | None = None
    max_checked_out: int | None = None
    queries_left_running: int | None = None


@dataclass(slots=True)
class Run:
    """One performance: its settings, the fault as it really was, and the twins.

    Attributes:
        check: Whether its figures can be believed; None where nobody looked.
        origin: What made them; see `guardrails.demo.origin`.
    """

    scenario: str
    seconds: int
    seed: int
    fault_starts: float
    fault_ends: float
    arrivals: list[Arrival]
    compartments: str = "declared"
    check: Check | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    plain: Twin = field(default_factory=lambda: Twin("plain"))
    guarded: Twin = field(default_factory=lambda: Twin("guarded"))

    @property
    def twins(self) -> tuple[Twin, Twin]:
        """Plain first."""
        return self.plain, self.guarded

    def phase(self, at: float) -> str:
        """``"healthy"``, ``"fault"`` or ``"recovery"``."""
        if at < self.fault_starts:
            return "healthy"
        return "fault" if at < self.fault_ends else "recovery"
