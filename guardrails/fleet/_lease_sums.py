"""Sums over the workers of a budget, and the fair shares that follow from them. Pure.

Depends on the records and the table of members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from guardrails.fleet._records import LEFT, LIVE, ROOM_FOR_NEW, SILENT, Record
from guardrails.fleet._table import count

__all__ = ["EXACT", "FLOORS", "Division", "LeaseSums", "Level", "demand", "fair_share", "find_level"]

FLOORS, DEMANDS, REST, ALL = range(4)
"""The shares are the floors; between floors and demands; between demands and capacities; the capacities."""

EXACT = 64
"""Demands up to it count as they are. Larger ones are rounded up by a sixteenth at most, so that the number
of different demands stays small."""

_MOST_STEPS = 64
"""Levels that are tried one after the other. Then a search by halves is quicker."""


@dataclass(slots=True)
class LeaseSums:
    """Sums over the workers of a budget: all that the rule needs to know of them.

    Attributes:
        live: Number of workers in contact.
        silent: Number of silent workers.
        cap: Connections reserved for workers in contact.
        held_by_silent: Connections reserved for silent workers.
        held_by_left: Connections reserved for workers that have left.
        safe: Safe shares of all that have not left.
        extra: Workers in contact that have one of the connections left over.
        filled: The part of the floors that workers in contact have reserved.
        budgets: How many of those that have not left name which budget.
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
    filled: int = 0
    budgets: dict[int, int] = field(default_factory=dict)
    low: dict[int, int] = field(default_factory=dict)
    wanted: dict[int, int] = field(default_factory=dict)
    high: dict[int, int] = field(default_factory=dict)
    _totals: list[int] = field(default_factory=lambda: [0, 0, 0])
    _level: Level | None = field(default=None, compare=False)
    _budget: int = field(default=-1, compare=False)
    _division: Division | None = field(default=None, compare=False)

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
            self.filled += sign * min(member.cap, low)
            self._count(low, wanted, member.most, sign)
        if state in {LIVE, SILENT}:
            self.safe += sign * member.safe
            count(self.budgets, member.budget, sign)

    def reserve(self, member: Record, sign: int) -> None:
        """Adds what a worker in contact has reserved, and its extra connection, to those of the others.

        The worker itself, its demand and its budget are in the sums already. -1 as ``sign`` subtracts it.
        """
        self.cap += sign * member.cap
        self.safe += sign * member.safe
        self.extra += sign * member.extra
        self.filled += sign * min(member.cap, member.minimum, member.most)

    def missing(self, own: int) -> int:
        """Returns the connections that all workers but one lack of their floors.

        Args:
            own: The floor of that one, which is in the sums with its demand and its budget alone.
        """
        return self._totals[0] - own - self.filled

    def divide(self, budget: int) -> Division:
        """Divides a budget among the workers in contact.

        Args:
            budget: The budget without what is reserved for workers that are not in contact.
        """
        if self._division is None or self._budget != budget:
            self._budget, self._division = budget, self._divide(budget)
        return self._division

    def _count(self, low: int, wanted: int, high: int, sign: int) -> None:
        count(self.low, low, sign)
        count(self.wanted, wanted, sign)
        count(self.high, high, sign)
        totals, self._division = self._totals, None
        totals[0] += sign * low
        totals[1] += sign * wanted
        totals[2] += sign * high
        level = self._level
        if level is not None:
            level.add(*((low, wanted) if level.mode == DEMANDS else (wanted, high)), sign)

    def _divide(self, budget: int) -> Division:
        low, wanted, high = self._totals
        if low >= budget:
            return Division(FLOORS)
        if wanted >= budget:
            return self._divide_between(DEMANDS, budget, self.low, self.wanted)
        budget = max(wanted, budget - max(1, budget // ROOM_FOR_NEW))
        if high <= budget:
            return Division(ALL)
        return self._divide_between(REST, budget, self.wanted, self.high)

    def _divide_between(
        self, mode: int, budget: int, low: Mapping[int, int], high: Mapping[int, int]
    ) -> Division:
        level = self._level
        if level is None or level.mode != mode or not level.move(budget, low, high):
            level = self._level = Level(mode, find_level(budget, low, high), low, high)
        return Division(mode, level.value, budget - level.sum)


class Level:
    """The level of a division, and the sum of all shares there, which follow each change of a demand.

    Args:
        mode: The mode of the division.
        value: The level.
        low: How many workers have which lower bound.
        high: How many workers have which upper bound.

    Attributes:
        sum: The sum of all shares.
    """

    __slots__ = ("_rising", "mode", "sum", "value")

    def __init__(self, mode: int, value: int, low: Mapping[int, int], high: Mapping[int, int]) -> None:
        self.mode, self.value = mode, value
        self.sum = _divided(value, _total(low), low, high)
        # Workers whose share is larger at the next level:
        self._rising = _up_to(value, low) - _up_to(value, high)

    def add(self, low: int, high: int, sign: int) -> None:
        """Adds a worker by its bounds, or subtracts it if ``sign`` is -1."""
        value = self.value
        self.sum += sign * min(max(value, low), high)
        self._rising += sign * (low <= value < high)

    def move(self, budget: int, low: Mapping[int, int], high: Mapping[int, int]) -> bool:
        """Moves to the highest level at which the shares fit into a budget.

        Returns:
            False if that is too far away for single steps.
        """
        steps = _MOST_STEPS
        while self.sum > budget and steps:
            rising = self._rising - low.get(self.value, 0) + high.get(self.value, 0)
            self.value, self.sum, self._rising = self.value - 1, self.sum - rising, rising
            steps -= 1
        while self.sum + self._rising <= budget and steps and (self._rising or self.value < max(high)):
            self.value, self.sum = self.value + 1, self.sum + self._rising
            self._rising += low.get(self.value, 0) - high.get(self.value, 0)
            steps -= 1
        return steps > 0


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
    division = sums.divide(budget)
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


def _up_to(level: int, values: Mapping[int, int]) -> int:
    return sum(many for value, many in values.items() if value <= level)


def find_level(budget: int, low: Mapping[int, int], high: Mapping[int, int]) -> int:
    """Returns the highest level at which the shares fit into a budget.

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
    return below


def _divided(level: int, base: int, low: Mapping[int, int], high: Mapping[int, int]) -> int:
    """Returns the sum of all shares at a level; a share grows with it between the worker's bounds."""
    rising = sum(many * (level - value) for value, many in low.items() if value < level)
    return base + rising - sum(many * (level - value) for value, many in high.items() if value < level)
