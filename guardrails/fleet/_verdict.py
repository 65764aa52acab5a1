"""The rule by which a fleet judges one dependency together. Pure: the time is an argument.

The SQLite store and the simulators run it; ``lease.lua`` says the same to Redis, and a test holds the two
equal. Depends on the records and the table of members.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Self

from guardrails.fleet._records import EPOCH, LEASE, LIVE, SKEW
from guardrails.fleet._rulings import (
    CLOSED,
    DECLINED,
    FAILED,
    OPEN,
    PASSED,
    PROBE,
    Circuit,
    Ruling,
    Share,
    VerdictRequest,
)
from guardrails.fleet._table import MemberTable, count

__all__ = ["IDLE", "VerdictSums", "VerdictTable", "close", "judge", "read_ruling"]

IDLE = 2000
"""Milliseconds for which a round of probes is left to a worker that has callers."""


@dataclass(slots=True)
class VerdictSums:
    """Sums over the workers of a verdict.

    Attributes:
        live: Workers in contact.
        calls: Their calls, by generation of the circuit; likewise the others.
        failures: Their failed calls.
        slow: Their slow calls.
        troubled: Number of those that had failed or slow calls.
    """

    live: int = 0
    calls: dict[int, int] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    slow: dict[int, int] = field(default_factory=dict)
    troubled: dict[int, int] = field(default_factory=dict)

    def add(self, member: Share, state: int, sign: int) -> None:
        """Adds a worker in a state, or subtracts it if ``sign`` is -1."""
        if state != LIVE:
            return
        self.live += sign
        count(self.calls, member.generation, sign * member.calls)
        count(self.failures, member.generation, sign * member.failures)
        count(self.slow, member.generation, sign * member.slow)
        count(self.troubled, member.generation, sign * (member.failures + member.slow > 0))


class VerdictTable:
    """The workers that judge one dependency, its circuit, and the rule.

    Attributes:
        circuit: The circuit.
        members: The workers by name.
        sums: The sums over them.
    """

    def __init__(self) -> None:
        self.circuit = Circuit()
        self.sums = VerdictSums()
        self.members: MemberTable[Share] = MemberTable(self.sums)

    @classmethod
    def read(cls, fields: Mapping[str, str], now: int) -> Self:
        """Reads the texts of a store. What cannot be read is treated as absent."""
        table = cls()
        table.circuit = Circuit.read(fields.get(EPOCH, ""))
        now = max(now, table.circuit.last) if table.circuit.last <= now + SKEW else now
        for name, text in fields.items():
            share = None if name == EPOCH else Share.read(text)
            if share is not None:
                table.members.put(name, share, now)
        return table

    def judge(self, asked: VerdictRequest, now: int) -> Ruling:
        """Takes one worker's window, and rules for it.

        The circuit opens on the sums over the workers in contact, if at least two of them had failed or slow
        calls, or the only worker there is: one bad worker must not stop the others.

        Args:
            asked: The request.
            now: The store's time.
        """
        circuit = self.circuit
        if circuit.last > now + SKEW:
            self.members.clear()
            circuit.last = 0
        now = circuit.last = max(now, circuit.last)
        if circuit.until > now + max(asked.wait, asked.lease) + SKEW:
            circuit.until = now  # the clock has jumped, or the text is not ours
        self.members.settle(now)
        own = self.members.get(asked.worker)
        if own is None or own.instance != asked.instance or asked.seq > own.seq:
            share = Share(
                asked.instance, asked.seq, now, asked.generation, asked.calls, asked.failures, asked.slow
            )
            self.members.put(asked.worker, share, now)
            self._make_transition(asked, now)
        is_probers = circuit.state == PROBE and circuit.prober == asked.worker
        return self.ruling(now, OPEN if circuit.state == PROBE and not is_probers else circuit.state)

    def ruling(self, now: int, state: int) -> Ruling:
        """Returns the circuit and the sums over the windows of its generation."""
        sums, generation = self.sums, self.circuit.generation
        return Ruling(
            state,
            max(0, self.circuit.until - now),
            generation,
            sums.live,
            sums.calls.get(generation, 0),
            sums.failures.get(generation, 0),
            sums.slow.get(generation, 0),
            sums.troubled.get(generation, 0),
        )

    def _make_transition(self, asked: VerdictRequest, now: int) -> None:
        """Makes the transition that is due, if any."""
        circuit, is_probers = self.circuit, self.circuit.prober == asked.worker
        can_probe = asked.result != DECLINED
        if circuit.state == CLOSED and self._is_sick(asked, now):
            circuit.state, circuit.generation, circuit.until = OPEN, circuit.generation + 1, now + asked.wait
        elif circuit.state == OPEN and now >= circuit.until:
            if can_probe and (asked.refused > 0 or now >= circuit.until + IDLE):
                self._give_round(asked, now)
        elif circuit.state == PROBE and is_probers and asked.result == PASSED:
            circuit.state, circuit.generation, circuit.until = CLOSED, circuit.generation + 1, 0
            circuit.prober = ""
        elif circuit.state == PROBE and is_probers and asked.result == FAILED:
            circuit.state, circuit.until, circuit.prober = OPEN, now + asked.wait, ""
        elif circuit.state == PROBE and is_probers and can_probe:
            circuit.seen = now
        elif circuit.state == PROBE and is_probers:  # the next worker that has callers takes the round
            circuit.state, circuit.until, circuit.prober = OPEN, now, ""
        elif circuit.state == PROBE and can_probe and self._is_round_over(now):
            self._give_round(asked, now)

    def _is_round_over(self, now: int) -> bool:
        return now >= self.circuit.until or now - self.circuit.seen > LEASE

    def _give_round(self, asked: VerdictRequest, now: int) -> None:
        circuit = self.circuit
        circuit.state, circuit.until = PROBE, now + asked.lease
        circuit.prober, circuit.seen = asked.worker, now

    def _is_sick(self, asked: VerdictRequest, now: int) -> bool:
        found = self.ruling(now, CLOSED)
        reached = (
            found.failures * 1_000_000 >= asked.failure_rate * found.calls
            or found.slow * 1_000_000 >= asked.slow_rate * found.calls
        )
        is_enough = found.troubled > 1 or found.workers == found.troubled == 1
        return found.calls >= max(1, asked.minimum) and reached and is_enough


def judge(fields: MutableMapping[str, str], asked: VerdictRequest, now: int) -> Ruling:
    """Takes one worker's window, and rules for it, in the texts of a store.

    Args:
        fields: The texts: a field for each worker, and `EPOCH` with the circuit; they are changed.
        asked: The request.
        now: The store's time.
    """
    table = VerdictTable.read(fields, now)
    ruling = table.judge(asked, now)
    for name in [name for name in fields if name not in table.members and name != EPOCH]:
        del fields[name]
    own = table.members.get(asked.worker)
    if own is not None:
        fields[asked.worker] = own.write()
    fields[EPOCH] = table.circuit.write()
    return ruling


def close(fields: MutableMapping[str, str]) -> None:
    """Closes the circuit in the texts of a store; the windows of before do not count."""
    circuit = Circuit.read(fields.get(EPOCH, ""))
    if circuit.state != CLOSED:
        circuit.state, circuit.generation, circuit.until = CLOSED, circuit.generation + 1, 0
        circuit.prober = ""
        fields[EPOCH] = circuit.write()


def read_ruling(fields: Mapping[str, str], now: int) -> Ruling:
    """Returns the state of a fleet's circuit and the sums, for people."""
    table = VerdictTable.read(fields, now)
    return table.ruling(now, table.circuit.state)
