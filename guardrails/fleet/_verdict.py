"""The rule by which a fleet judges one dependency together. Pure: the time is an argument.

The SQLite store runs it; ``lease.lua`` says the same to Redis, and a test holds the two equal. Numbers are
whole: rates in millionths, times in milliseconds. Depends on the records of leases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Self

from guardrails.fleet._records import EPOCH, FORGET_AFTER, LEASE, SKEW

__all__ = [
    "CLOSED",
    "FAILED",
    "IDLE",
    "OPEN",
    "PASSED",
    "PROBE",
    "Circuit",
    "Ruling",
    "VerdictRequest",
    "judge",
    "look",
]

CLOSED, OPEN, PROBE = 0, 1, 2
"""The states of a ruling. ``PROBE``: this worker makes the probes of the round; for all others it is open."""

PASSED, FAILED = 1, 2
"""The results of a worker's round of probes; 0 while there is none."""

IDLE = 2000
"""Milliseconds for which a round of probes is left to a worker that has callers."""

_MOST_DIGITS = 15
_LONGEST = 300
_SHARE = re.compile(r"1 ([0-9a-f]+) ([0-9]+) ([0-9]+) ([0-9]+) ([0-9]+) ([0-9]+) ([0-9]+)")
_CIRCUIT = re.compile(r"1 ([012]) ([0-9]+) ([0-9]+) ([!-~]*)")


@dataclass(frozen=True, slots=True)
class VerdictRequest:
    """What a worker says about one dependency.

    Attributes:
        worker: Its name in the fleet.
        instance: A random number of its process, in hexadecimal.
        seq: Number of the request; it only grows.
        generation: The generation of the fleet's circuit that it knows.
        result: `PASSED` or `FAILED` once its round of probes has ended; else 0.
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
        prober: The worker that makes the probes.
    """

    state: int = CLOSED
    generation: int = 0
    until: int = 0
    prober: str = ""

    @classmethod
    def read(cls, text: str) -> Self:
        """Reads a circuit; a new one if the text is none."""
        found = _CIRCUIT.fullmatch(text) if len(text) <= _LONGEST else None
        if found is None or max(len(found[2]), len(found[3])) > _MOST_DIGITS:
            return cls()
        return cls(int(found[1]), int(found[2]), int(found[3]), found[4])

    def write(self) -> str:
        """Returns the text of the circuit."""
        return f"1 {self.state} {self.generation} {self.until} {self.prober}"


@dataclass(frozen=True, slots=True)
class _Share:
    """What one worker has last said."""

    instance: str
    seq: int
    renewed: int
    generation: int
    calls: int
    failures: int
    slow: int

    @classmethod
    def read(cls, text: str) -> Self | None:
        found = _SHARE.fullmatch(text) if len(text) <= _LONGEST else None
        if found is None or max(map(len, found.groups()[1:])) > _MOST_DIGITS:
            return None
        return cls(found[1], *map(int, found.groups()[1:]))

    def is_live(self, now: int) -> bool:
        return now - self.renewed <= LEASE


def judge(fields: MutableMapping[str, str], asked: VerdictRequest, now: int) -> Ruling:
    """Takes one worker's window, and rules for it.

    The circuit opens on the sums over the workers in contact, if at least two of them had failed or slow
    calls, or the only worker there is: one bad worker must not stop the others.

    Args:
        fields: The store's mapping for this dependency; it is changed.
        asked: The request.
        now: The store's time.
    """
    circuit = Circuit.read(fields.get(EPOCH, ""))
    if circuit.until > now + max(asked.wait, asked.lease) + SKEW:
        circuit.until = now  # the clock has jumped, or the text is not ours
    known = _known(fields, now)
    for name in fields.keys() - known.keys() - {EPOCH}:
        del fields[name]
    own = known.get(asked.worker)
    if own is None or own.instance != asked.instance or asked.seq > own.seq:
        known[asked.worker] = _Share(
            asked.instance, asked.seq, now, asked.generation, asked.calls, asked.failures, asked.slow
        )
        counted = _counted(known, circuit, now)
        _turn(circuit, asked, now, counted, known)
        own = known[asked.worker]
        fields[asked.worker] = (
            f"1 {own.instance} {own.seq} {now} {own.generation} {own.calls} {own.failures} {own.slow}"
        )
        fields[EPOCH] = circuit.write()
    state = circuit.state
    if state == PROBE and circuit.prober != asked.worker:
        state = OPEN
    return _ruling(state, circuit, known, now)


def look(fields: Mapping[str, str], now: int) -> Ruling:
    """Returns the state of a fleet's circuit and the sums, for people."""
    circuit = Circuit.read(fields.get(EPOCH, ""))
    return _ruling(circuit.state, circuit, _known(fields, now), now)


def _known(fields: Mapping[str, str], now: int) -> dict[str, _Share]:
    shares = {name: _Share.read(text) for name, text in fields.items() if name != EPOCH}
    return {
        name: share
        for name, share in shares.items()
        if share is not None and -SKEW <= now - share.renewed <= FORGET_AFTER
    }


def _ruling(state: int, circuit: Circuit, known: Mapping[str, _Share], now: int) -> Ruling:
    counted = _counted(known, circuit, now)
    return Ruling(
        state,
        max(0, circuit.until - now),
        circuit.generation,
        sum(share.is_live(now) for share in known.values()),
        sum(share.calls for share in counted),
        sum(share.failures for share in counted),
        sum(share.slow for share in counted),
        sum(share.failures + share.slow > 0 for share in counted),
    )


def _counted(known: Mapping[str, _Share], circuit: Circuit, now: int) -> list[_Share]:
    return [
        share for share in known.values() if share.is_live(now) and share.generation == circuit.generation
    ]


def _turn(
    circuit: Circuit,
    asked: VerdictRequest,
    now: int,
    counted: list[_Share],
    known: Mapping[str, _Share],
) -> None:
    """Makes the transition that is due, if any."""
    prober, workers = known.get(circuit.prober), sum(share.is_live(now) for share in known.values())
    if circuit.state == CLOSED and _is_sick(asked, counted, workers):
        circuit.state, circuit.generation, circuit.until = OPEN, circuit.generation + 1, now + asked.wait
    elif circuit.state == OPEN and now >= circuit.until:
        if asked.refused > 0 or now >= circuit.until + IDLE:
            circuit.state, circuit.until, circuit.prober = PROBE, now + asked.lease, asked.worker
    elif circuit.state == PROBE and circuit.prober == asked.worker:
        if asked.result == PASSED:
            circuit.state, circuit.generation, circuit.until = CLOSED, circuit.generation + 1, 0
            circuit.prober = ""
        elif asked.result == FAILED:
            circuit.state, circuit.until, circuit.prober = OPEN, now + asked.wait, ""
    elif circuit.state == PROBE and (now >= circuit.until or prober is None or not prober.is_live(now)):
        circuit.until, circuit.prober = now + asked.lease, asked.worker


def _is_sick(asked: VerdictRequest, counted: list[_Share], workers: int) -> bool:
    calls = sum(share.calls for share in counted)
    failures = sum(share.failures for share in counted)
    slow = sum(share.slow for share in counted)
    troubled = sum(share.failures + share.slow > 0 for share in counted)
    reached = (
        failures * 1_000_000 >= asked.failure_rate * calls or slow * 1_000_000 >= asked.slow_rate * calls
    )
    return calls >= max(1, asked.minimum) and reached and (troubled > 1 or workers == troubled == 1)
