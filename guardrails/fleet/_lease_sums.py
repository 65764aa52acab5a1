"""Sums over the workers of a budget, and the fair shares that follow from them. Pure.

Depends on the records and the table of members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from guardrails.fleet._records import LEFT, LIVE, ROOM_FOR_NEW, SILENT, Record
from guardrails.fleet._table import count

__all__ = ["EXACT", "FLOORS", "Division", "LeaseSums", "demand", "fair_share"]

FLOORS, DEMANDS, REST, ALL = range(4)
"""The shares are the floors; between floors and demands; between demands and capacities; the capacities."""

EXACT = 64
"""Demands up to it count as they are. Larger ones are rounded up by a sixteenth at most, so that the number
of different demands stays small."""


@dataclass(slots=True)
class LeaseSums:
    """Sums over the workers of a budget: all that the rule needs to know of them.

    Attributes:
        live: Number of workers in contact.
        silent: Number of silent workers.
        cap: Connections reserved for workers in contact.
        held_by_silent: Connections reserved for silent workers.
        held_by_left: Connections reserved for workers that said goodbye.
        safe: Safe shares of all that have not said goodbye.
        extra: Workers in contact that have one of the connections left over.
        budgets: How many of those that have not said goodbye name which budget.
        low: How many workers in contact have which floor.
        wanted: How many workers in contact have which demand.
        high: How many workers in contact have which capacity.
    """

    live: int = 0
    silent: int = 0
    cap: int = 0
    held_by_silent: int = 0
    held_by_left: int = 0
    safe: int = 0
    extra: int = 0
    budgets: dict[int, int] = field(default_factory=dict)
    low: dict[int, int] = field(default_factory=dict)
    wanted: dict[int, int] = field(default_factory=dict)
    high: dict[int, int] = field(default_factory=dict)

    def add(self, member: Record, state: int, sign: int) -> None:
        """Adds a worker in a state, or subtracts it if ``sign`` is -1."""
        if state == LEFT:
            self.held_by_left += sign * member.cap
        elif state == SILENT:
            self.silent += sign
            self.held_by_silent += sign * max(member.cap, member.safe)
        elif state == LIVE:
            self.live += sign
            self.cap += sign * member.cap
            self.extra += sign * member.extra
            low, wanted = demand(member)
            count(self.low, low, sign)
            count(self.wanted, wanted, sign)
            count(self.high, member.most, sign)
        if state in {LIVE, SILENT}:
            self.safe += sign * member.safe
            count(self.budgets, member.budget, sign)


def demand(record: Record) -> tuple[int, int]:
    """Returns a worker's floor and its demand, both at most its capacity."""
    low = min(record.minimum, record.most)
    wanted = max(record.wants, low)
    if wanted > EXACT:
        step = 1 << (wanted.bit_length() - 5)
        wanted = -(-wanted // step) * step
    return low, min(wanted, record.most)


def fair_share(budget: int, sums: LeaseSums, own: Record) -> tuple[int, bool]:
    """Returns a worker's fair share, and whether it has one of the connections that are left.

    Args:
        budget: The budget without what is reserved for workers that are not in contact.
        sums: The sums over the workers; ``own`` counts there without one of the connections that are left.
        own: The worker.
    """
    division = Division.of(budget, sums)
    extra = sums.extra < division.left and division.may_have_more(own)
    return division.share(own) + extra, extra


@dataclass(frozen=True, slots=True)
class Division:
    """The division of a budget into fair shares: max-min by demand, and then the rest in the same way.

    Every worker gets its floor first. What is missing is taken from those who want most. What is left over
    goes to those who have least, for the next burst. But a tenth of the budget is given only to those who
    want it: a new worker gets its floor from it at once, while others need a renewal to make room.

    All have the same level, or their nearer bound. The connections that are left then, fewer than the workers
    that could have more, go to the first that ask; a worker keeps its own while fewer others have one than
    there are left.

    Attributes:
        mode: `FLOORS`, `DEMANDS`, `REST` or `ALL`: between which bounds the shares are.
        level: The level.
        left: Connections that are left then.
    """

    mode: int
    level: int = 0
    left: int = 0

    @classmethod
    def of(cls, budget: int, sums: LeaseSums) -> Self:
        """Divides a budget.

        Args:
            budget: The budget without what is reserved for workers that are not in contact.
            sums: The sums over the workers.
        """
        if _total(sums.low) >= budget:
            return cls(FLOORS)
        wants = _total(sums.wanted)
        if wants >= budget:
            return cls(DEMANDS, *_level(budget, sums.low, sums.wanted))
        budget = max(wants, budget - max(1, budget // ROOM_FOR_NEW))
        if _total(sums.high) <= budget:
            return cls(ALL)
        return cls(REST, *_level(budget, sums.wanted, sums.high))

    def may_have_more(self, own: Record) -> bool:
        """True if one of the connections that are left may go to this worker."""
        least, most = self._bounds(own)
        return self.mode in {DEMANDS, REST} and least <= self.level < most

    def share(self, own: Record) -> int:
        """Returns a worker's share without one of the connections that are left."""
        least, most = self._bounds(own)
        return min(max(self.level, least), most)

    def _bounds(self, own: Record) -> tuple[int, int]:
        low, wanted = demand(own)
        if self.mode == FLOORS:
            return low, low
        if self.mode == ALL:
            return own.most, own.most
        return (low, wanted) if self.mode == DEMANDS else (wanted, own.most)


def _total(values: Mapping[int, int]) -> int:
    return sum(value * many for value, many in values.items())


def _level(budget: int, low: Mapping[int, int], high: Mapping[int, int]) -> tuple[int, int]:
    """Returns the highest level at which the shares fit into a budget, and the connections left then.

    Args:
        budget: Connections to divide.
        low: How many workers have which lower bound; together they are below the budget.
        high: How many workers have which upper bound; together they are not below it.
    """
    base = _total(low)
    below, above = 0, min(budget, max(high))
    while below < above:
        level = (below + above + 1) // 2
        if _divided(level, base, low, high) <= budget:
            below = level
        else:
            above = level - 1
    return below, budget - _divided(below, base, low, high)


def _divided(level: int, base: int, low: Mapping[int, int], high: Mapping[int, int]) -> int:
    """Returns the sum of all shares at a level; a share grows with it between the worker's bounds."""
    rising = sum(many * (level - value) for value, many in low.items() if value < level)
    return base + rising - sum(many * (level - value) for value, many in high.items() if value < level)
