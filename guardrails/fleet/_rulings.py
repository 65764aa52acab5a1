"""What a worker and a store say to each other about a dependency, and what a store writes down. Pure.

Depends on the records of leases. Numbers are whole: rates in millionths, times in milliseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Self

from guardrails.fleet._records import FORGET_AFTER, LEASE, LIVE, SILENT, SKEW

__all__ = [
    "CLOSED",
    "DECLINED",
    "FAILED",
    "OPEN",
    "PASSED",
    "PROBE",
    "Circuit",
    "Ruling",
    "Share",
    "VerdictRequest",
]

CLOSED, OPEN, PROBE = 0, 1, 2
"""The states of a ruling. ``PROBE``: this worker makes the probes of the round; for all others it is open."""

PASSED, FAILED, DECLINED = 1, 2, 3
"""The results of a worker's round of probes; 0 while there is none. ``DECLINED``: it can make no probes."""

_MOST_DIGITS = 15
_LONGEST = 300
_SHARE = re.compile(r"2 ([0-9a-f]+)" + r" ([0-9]+)" * 6)
_CIRCUIT = re.compile(r"2 ([012])" + r" ([0-9]+)" * 4 + r" ([!-~]*)")


class VerdictRequest(NamedTuple):
    """What a worker says about one dependency.

    Attributes:
        worker: Its name in the fleet.
        instance: A random number of its process, in hexadecimal.
        seq: Number of the request; it only grows.
        generation: The generation of the fleet's circuit that it knows.
        result: `PASSED` or `FAILED` once its round of probes has ended; `DECLINED` if it can make none;
            else 0.
        calls: Calls in its window.
        failures: Failed calls in its window.
        slow: Slow calls in its window, those that are overdue included.
        refused: Callers that it refused since its last request.
        minimum: Number of calls below which there is no verdict.
        failure_rate: The rate of failures that opens, in millionths.
        slow_rate: The rate of slow calls that opens, in millionths.
        wait: Milliseconds for which the circuit stays open.
        lease: Milliseconds for a round of probes.
    """

    worker: str
    instance: str
    seq: int
    generation: int
    result: int
    calls: int
    failures: int
    slow: int
    refused: int
    minimum: int
    failure_rate: int
    slow_rate: int
    wait: int
    lease: int


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a store answers.

    Attributes:
        state: `CLOSED`, `OPEN` or `PROBE`.
        left: Milliseconds until the end of the open period or of the round.
        generation: The generation of the fleet's circuit.
        workers: Workers in contact.
        calls: Calls in all windows.
        failures: Failed calls in all windows.
        slow: Slow calls in all windows.
        troubled: Workers that had failed or slow calls.
    """

    state: int
    left: int
    generation: int
    workers: int
    calls: int
    failures: int
    slow: int
    troubled: int


@dataclass(slots=True)
class Circuit:
    """The fleet's circuit.

    Attributes:
        state: `CLOSED`, `OPEN` or `PROBE`.
        generation: It grows with each opening and each closing. Windows of another generation do not count.
        until: The end of the open period, or of the round of probes.
        seen: Time of the last request of the worker that makes the probes.
        last: Time of the last request.
        prober: The worker that makes the probes.
    """

    state: int = CLOSED
    generation: int = 0
    until: int = 0
    seen: int = 0
    last: int = 0
    prober: str = ""

    @classmethod
    def read(cls, text: str) -> Self:
        """Reads a circuit; a new one if the text is none."""
        found = _CIRCUIT.fullmatch(text) if len(text) <= _LONGEST else None
        if found is None or max(map(len, found.groups()[1:5])) > _MOST_DIGITS:
            return cls()
        state, generation, until, seen, last = map(int, found.groups()[:5])
        return cls(state, generation, until, seen, last, found[6])

    def write(self) -> str:
        """Returns the text of the circuit."""
        return f"2 {self.state} {self.generation} {self.until} {self.seen} {self.last} {self.prober}"


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker has last said; the attributes are those of its request."""

    instance: str
    seq: int
    renewed: int
    generation: int
    calls: int
    failures: int
    slow: int

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Reads a share; None if the text is none."""
        found = _SHARE.fullmatch(text) if len(text) <= _LONGEST else None
        if found is None or max(map(len, found.groups()[1:])) > _MOST_DIGITS:
            return None
        return cls(found[1], *map(int, found.groups()[1:]))

    def write(self) -> str:
        """Returns its text."""
        return (
            f"2 {self.instance} {self.seq} {self.renewed} {self.generation} {self.calls} {self.failures} "
            f"{self.slow}"
        )

    def state(self, now: int) -> int:
        """Returns `LIVE` or `SILENT`; 0 if it is to be forgotten."""
        age = now - self.renewed
        return 0 if age < -SKEW or age > FORGET_AFTER else LIVE if age <= LEASE else SILENT

    def changes_at(self, state: int) -> int:
        """Returns the time at which a state ends without a renewal."""
        return self.renewed + 1 + (LEASE if state == LIVE else FORGET_AFTER)
