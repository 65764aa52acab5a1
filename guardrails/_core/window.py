"""Sliding windows that count calls, failures and slow calls. Must not import thresholds or states."""

from __future__ import annotations

import math
from typing import Protocol

__all__ = ["FAILED", "NEVER", "SLOW", "CountWindow", "TimeWindow", "Window"]

FAILED = 1
SLOW = 2
"""The two marks of a call, which may carry none, one or both."""

NEVER = -math.inf
"""A time before every reading of a clock."""


class Window(Protocol):
    """The interface of the two kinds of window.

    Attributes:
        calls: Calls in the window.
        failures: Those marked FAILED.
        slow: Those marked SLOW.
        until: ``advance`` has nothing to do before this time.
    """

    calls: int
    failures: int
    slow: int
    until: float

    def advance(self, now: float) -> None:
        """Forgets the calls that are too old at ``now``."""

    def add(self, mark: int) -> int:
        """Adds a call and returns its position, for ``add_mark``."""

    def add_unmarked(self, count: int) -> None:
        """Adds ``count`` calls without a mark to the current slice."""

    def add_failures(self, count: int) -> None:
        """Adds calls marked FAILED, all of this moment."""

    def add_mark(self, position: int, mark: int) -> None:
        """Adds a mark to a call added earlier; does nothing if the call has been forgotten."""

    def clear(self) -> None:
        """Forgets everything."""


class CountWindow:
    """The last ``size`` calls, one byte each in a ring."""

    __slots__ = ("_ring", "_total", "calls", "failures", "slow", "until")

    def __init__(self, size: int) -> None:
        self._ring = bytearray(size)
        self._total = 0
        self.calls = self.failures = self.slow = 0
        self.until = math.inf

    def advance(self, now: float) -> None:
        """Does nothing: only newer calls displace older ones."""

    def add(self, mark: int) -> int:
        """See Window."""
        ring, position = self._ring, self._total
        at = position % len(ring)
        old = ring[at]
        ring[at] = mark
        self._total = position + 1
        if self.calls < len(ring):
            self.calls += 1
        self.failures += (mark & FAILED) - (old & FAILED)
        self.slow += (mark >> 1) - (old >> 1)
        return position

    def add_unmarked(self, count: int) -> None:
        """See Window. Writes each element of the ring at most once."""
        ring, at = self._ring, self._total % len(self._ring)
        self._total += count
        self.calls = min(len(ring), self.calls + count)
        if self.failures or self.slow:
            count = min(count, len(ring))
            self._wipe(at, min(at + count, len(ring)))
            self._wipe(0, at + count - len(ring))

    def add_failures(self, count: int) -> None:
        """See Window."""
        self.add_unmarked(count)
        ring, kept = self._ring, min(count, len(self._ring))
        start = (self._total - kept) % len(ring)
        first = min(kept, len(ring) - start)
        ring[start : start + first] = bytes((FAILED,)) * first
        ring[: kept - first] = bytes((FAILED,)) * (kept - first)
        self.failures += kept

    def _wipe(self, start: int, stop: int) -> None:
        old = self._ring[start : max(start, stop)]
        self.failures -= old.count(FAILED) + old.count(FAILED | SLOW)
        self.slow -= old.count(SLOW) + old.count(FAILED | SLOW)
        self._ring[start : start + len(old)] = bytes(len(old))

    def add_mark(self, position: int, mark: int) -> None:
        """See Window."""
        ring = self._ring
        if self._total - self.calls <= position < self._total:
            at = position % len(ring)
            new = mark & ~ring[at]
            ring[at] |= mark
            self.failures += new & FAILED
            self.slow += new >> 1

    def clear(self) -> None:
        """See Window."""
        self._ring = bytearray(len(self._ring))
        self._total += len(self._ring)  # so that no earlier position is valid again
        self.calls = self.failures = self.slow = 0


_NONE = (0, 0)

SLICES = 10
"""Slices of a time window. It forgets a slice at a time: constant memory and cost, 10 % resolution."""


class TimeWindow:
    """The last ``size`` seconds in ten slices, aligned to the clock's zero.

    The current slice and the nine before it count. So a call stays for at least nine tenths of ``size``
    and at most ``size`` seconds.
    """

    __slots__ = ("_index", "_marks", "_size", "_totals", "calls", "failures", "slow", "until")

    def __init__(self, size: float) -> None:
        self._size = size
        self._totals = [0] * SLICES
        self._marks: dict[int, tuple[int, int]] = {}  # slice: (failures, slow calls)
        self._index: int | None = None
        self.calls = self.failures = self.slow = 0
        self.until = NEVER

    def advance(self, now: float) -> None:
        """See Window. Ignores a clock that has gone back."""
        if now < self.until:
            return
        # Multiply first: with slices of 0.1 s, 1.0 is the start of slice 10, although 1.0 // 0.1 is 9.
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

    def add_failures(self, count: int) -> None:
        """See Window. Call ``advance`` first."""
        self.add_unmarked(count)
        at = self._current() % SLICES
        failures, slow = self._marks.get(at, _NONE)
        self._marks[at] = failures + count, slow
        self.failures += count

    def _current(self) -> int:
        assert self._index is not None, "advance comes before add"  # noqa: S101 - the caller's duty
        return self._index

    def add_mark(self, position: int, mark: int) -> None:
        """See Window."""
        if self._index is not None and self._index - SLICES < position <= self._index:
            self._mark(position % SLICES, mark)

    def clear(self) -> None:
        """See Window. The current slice stays current."""
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
