"""The records of a run: users, their tries, and readings of the twins.

Depends on the scenarios alone; `guardrails.demo.figures` does the sums. All instants are seconds from the
start of the load.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from guardrails._core.shadow import Mode
    from guardrails.demo.selfcheck import Check

__all__ = ["Arrival", "Look", "PoolReport", "Run", "Transition", "Try", "Twin", "User"]

Answer = Literal["ok", "rejected", "error", "timeout"]
"""``ok`` 2xx; ``rejected`` a 503 with problem+json; ``error`` any other answer or a broken
connection; ``timeout`` no answer within the client's limit."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A future user: time, endpoint, and a number that seeds the backoff."""

    at: float
    path: str
    number: int


@dataclass(frozen=True, slots=True)
class Try:
    """One request.

    Attributes:
        meant_at: The moment at which it should have been sent, even if the demo was late.
        seconds: From then to the answer, or to the client's limit.
        answer: The result.
    """

    meant_at: float
    seconds: float
    answer: Answer

    @property
    def ended_at(self) -> float:
        """The moment of the answer, or of the client's limit."""
        return self.meant_at + self.seconds


@dataclass(frozen=True, slots=True)
class User:
    """One arrival and its tries, recorded when the last try has ended."""

    arrival: Arrival
    tries: tuple[Try, ...]

    @property
    def served(self) -> bool:
        """True if the last try got a good answer."""
        return self.tries[-1].answer == "ok"

    @property
    def seconds(self) -> float:
        """Seconds from the arrival to the good answer, or to giving up."""
        return self.tries[-1].ended_at - self.arrival.at


@dataclass(frozen=True, slots=True)
class Look:
    """A reading of a twin at one instant."""

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


@dataclass(frozen=True, slots=True, order=True)
class PoolReport:
    """What an app says about its pool at one instant. The worse one is the greater one.

    Attributes:
        has_cause: True if it names a lock or a leak.
        wanted: Connections in use, and callers that wait for one.
        at: The instant.
        words: The report, on several lines.
    """

    has_cause: bool
    wanted: int
    at: float
    words: str


@dataclass(slots=True)
class Twin:
    """The records of one twin.

    Attributes:
        name: ``"plain"`` or ``"guarded"``.
        users: Users that are done, in the order of their ends.
        tries: Tries of the main endpoint that have ended, in the order of their ends.
        looks: Regular readings of the twin.
        changes: The guards' changes of state.
        max_in_flight: Most requests inside the app at once; None without a reading.
        max_checked_out: Most connections out of the pool at once.
        queries_left_running: Queries in the database 1 s after the load ended.
        cause: The first cause that the app names: a lock wait with the session that holds the lock, or the
            line that leaks connections; None without one.
        pool: The worst report of the app about its pool; None without one.
        watched: What its guards in shadow would have done, each as on a status page.
    """

    name: str
    users: list[User] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    changes: list[Transition] = field(default_factory=list)
    max_in_flight: int | None = None
    max_checked_out: int | None = None
    queries_left_running: int | None = None
    cause: str | None = None
    pool: PoolReport | None = None
    watched: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """One run: its settings, the real times of the fault, and the twins.

    Attributes:
        check: The check of its figures; None without one.
        origin: Versions, machine and command; see `guardrails.demo.origin`.
    """

    scenario: str
    seconds: int
    seed: int
    fault_starts: float
    fault_ends: float
    arrivals: list[Arrival]
    compartments: str = "declared"
    mode: Mode = "enforce"
    check: Check | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    plain: Twin = field(default_factory=lambda: Twin("plain"))
    guarded: Twin = field(default_factory=lambda: Twin("guarded"))

    @property
    def twins(self) -> tuple[Twin, Twin]:
        """The twins, the plain one first."""
        return self.plain, self.guarded

    def phase(self, at: float) -> str:
        """Returns ``"healthy"``, ``"fault"`` or ``"recovery"``."""
        if at < self.fault_starts:
            return "healthy"
        return "fault" if at < self.fault_ends else "recovery"
