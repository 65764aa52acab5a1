"""The recent past as three numbers: calls, failures, slow calls. Knows no thresholds and no states."""

from __future__ import annotations

import math
from typing import Protocol

__all__ = ["FAILED", "NEVER", "SLOW", "CountWindow", "TimeWindow", "Window"]

FAILED = 1
SLOW = 2
"""The two marks of a call; a call carries none, one or both."""

NEVER = -math.inf
"""A moment before all time. (One number for all who need it, not one each.)"""


class Window(Protocol):
    """What the breaker asks of its memory.

    Attributes:
        calls: Calls remembered.
        failures: Those marked FAILED.
        slow: Those marked SLOW.
        until: Before this moment ``advance`` has nothing to do.
    """

    calls: int
    failures: int
    slow: int
    until: float

    def advance(self, now: float) -> None:
        """Forgets what has become too old by ``now``."""

    def add(self, mark: int) -> int:
        """Remembers one call and returns its place, for ``amend``."""

    def add_unmarked(self, count: int) -> None:
        """Remembers so many calls without a mark, all of this moment."""

    def amend(self, place: int, mark: int) -> None:
        """Adds a mark to a call remembered earlier; one that is forgotten already stays so."""

    def clear(self) -> None:
        """Forgets everything."""


class CountWindow:
    """The last ``size`` calls, one byte each in a ring."""

    __slots__ = ("_fire", "_total", "calls", "failures", "slow", "until")

    def __init__(self, size: int) -> None:
        self._fire = bytearray(size)
        self._total = 0
        self.calls = self.failures = self.slow = 0
        self.until = math.inf

    def advance(self, now: float) -> None:
        """Does nothing: time alone makes no call old here."""

    def add(self, mark: int) -> int:
        """See Window."""
        fire, place = self._fire, self._total
        at = place % len(fire)
        old = fire[at]
        fire[at] = mark
        self._total = place + 1
        if self.calls < len(fire):
            self.calls += 1
        self.failures += (mark & FAILED) - (old & FAILED)
        self.slow += (mark >> 1) - (old >> 1)
        return place

    def add_unmarked(self, count: int) -> None:
        """See Window. At most once round the ring, however many."""
        fire, at = self._fire, self._total % len(self._fire)
        self._total += count
        self.calls = min(len(fire), self.calls + count)
        if self.failures or self.slow:  # else there is nothing in the ring to wipe
            count = min(count, len(fire))
            self._wipe(at, min(at + count, len(fire)))
            self._wipe(0, at + count - len(fire))

    def _wipe(self, start: int, stop: int) -> None:
        old = self._fire[start : max(start, stop)]
        self.failures -= old.count(FAILED) + old.count(FAILED | SLOW)
        self.slow -= old.count(SLOW) + old.count(FAILED | SLOW)
        self._fire[start : start + len(old)] = bytes(len(old))

    def amend(self, place: int, mark: int) -> None:
        """See Window."""
        fire = self._fire
        if self._total - self.calls <= place < self._total:
            at = place % len(fire)
            new = mark & ~fire[at]
            fire[at] |= mark
            self.failures += new & FAILED
            self.slow += new >> 1

    def clear(self) -> None:
        """See Window."""
        self._fire = bytearray(len(self._fire))
        self._total += len(self._fire)  # places handed out before lie outside for ever
        self.calls = self.failures = self.slow = 0


_NONE = (0, 0)

SLICES = 10
"""A time window forgets in tenths of its length: constant memory, constant cost, 10 % resolution."""


class TimeWindow:
    """The last ``size`` seconds in ten slices, aligned to the clock's zero.

    The slice now being filled and the nine before it count, so a call is remembered for between
    nine tenths of ``size`` and ``size`` seconds.
    """

    __slots__ = ("_index", "_marks", "_size", "_totals", "calls", "failures", "slow", "until")

    def __init__(self, size: float) -> None:
        self._size = size
        self._totals = [0] * SLICES
        self._marks: dict[int, tuple[int, int]] = {}  # failures and slow calls, of the slices that have any
        self._index: int | None = None
        self.calls = self.failures = self.slow = 0
        self.until = NEVER

    def advance(self, now: float) -> None:
        """See Window. A clock that went back leaves everything as it is."""
        if now < self.until:
            return
        # Multiplied before divided: of slices of 0.1 s, 1.0 begins the eleventh, although 1.0 // 0.1 is 9.
        index = int(now * SLICES // self._size)
        if self._index is None or index - self._index >= SLICES:
            self._wipe()
            self._index = index
        while self._index < index:
            self._index += 1
            at = self._index % SLICES
            self.calls -= self._totals[at]
            self._totals[at] = 0
            failures, slow = self._marks.pop(at, _NONE)
            self.failures -= failures
            self.slow -= slow
        self.until = (self._index + 1) * self._size / SLICES

    def add(self, mark: int) -> int:
        """See Window. Call ``advance`` first."""
        index = self._current()
        self._totals[index % SLICES] += 1
        self.calls += 1
        if mark:
            self._mark(index % SLICES, mark)
        return index

    def add_unmarked(self, count: int) -> None:
        """See Window. Call ``advance`` first."""
        self._totals[self._current() % SLICES] += count
        self.calls += count

    def _current(self) -> int:
        assert self._index is not None, "advance comes before add"  # noqa: S101 - a rule between two rooms
        return self._index

    def amend(self, place: int, mark: int) -> None:
        """See Window."""
        if self._index is not None and self._index - SLICES < place <= self._index:
            self._mark(place % SLICES, mark)

    def clear(self) -> None:
        """See Window. The slice of the moment stays the current one."""
        self._wipe()

    def _mark(self, at: int, mark: int) -> None:
        failed, slow = mark & FAILED, mark >> 1
        failures_here, slow_here = self._marks.get(at, _NONE)
        self._marks[at] = (failures_here + failed, slow_here + slow)
        self.failures += failed
        self.slow += slow

    def _wipe(self) -> None:
        self._totals[:] = [0] * SLICES
        self._marks.clear()
        self.calls = self.failures = self.slow = 0
