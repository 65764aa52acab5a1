"""How long the checkouts of one compartment and route waited, held and used a connection.

Depends on distributions; must not import guards. A call appends its duration to a deque, which is atomic with
the interpreter lock and without it. Every `BATCH` durations, and before the figures are read, they are sorted
into buckets together: this costs a quarter of what a search for the bucket of each would.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from guardrails._guard.pool_snapshot import BOUNDS, Distribution
from guardrails._runtime.fork import ForkedLock

__all__ = ["BATCH", "LONGEST", "Durations", "RouteTimes", "count_since"]

LONGEST = 1e9
"""Seconds. A longer time, NaN and infinity come from a broken clock and are counted as 0."""

_RECENT = 16
"""Number of last durations whose mean is the usual one, and of last ends that show whether calls hang."""

BATCH = 128
"""Durations that are sorted into buckets together."""


class Durations:
    """How long something took, by bucket.

    Attributes:
        pending: Durations that are in no bucket yet.
    """

    __slots__ = ("_counts", "_lock", "_sum", "pending")

    def __init__(self, lock: ForkedLock) -> None:
        self.pending: deque[float] = deque()
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0
        self._lock = lock

    def sort(self) -> None:
        """Sorts the durations into buckets."""
        with self._lock:
            batch: list[float] = []
            with suppress(IndexError):  # others only append, but a finaliser may sort in the middle of this
                while True:
                    batch.append(self.pending.popleft())
            batch.sort()
            self._sum += sum(batch)
            start = 0
            for bucket, bound in enumerate(BOUNDS):
                if start == len(batch):
                    return
                end = bisect_right(batch, bound, start)
                self._counts[bucket] += end - start
                start = end
            self._counts[-1] += len(batch) - start

    def recent(self) -> float:
        """The mean of the last durations; of all of them right after they were sorted; 0.0 without any."""
        last: list[float] = []
        with suppress(RuntimeError):  # another thread appends meanwhile
            last = [*self.pending][-_RECENT:]
        known = Distribution(sum=sum(last), counts=(len(last),)) if last else self.read()
        return known.sum / known.count if known.count else 0.0

    def read(self) -> Distribution:
        """Returns the durations so far."""
        with self._lock:
            self.sort()
            return Distribution(counts=tuple(self._counts), sum=self._sum)


class RouteTimes:
    """The times of the checkouts of one compartment and route.

    Args:
        clock: The guard's clock.
        lock: Held while durations are sorted.

    Attributes:
        overtime: In shadow the work that runs on although enforcing would have stopped it.
    """

    __slots__ = ("_endings", "clock", "hold", "overtime", "use", "wait")

    def __init__(self, clock: Callable[[], float], lock: ForkedLock) -> None:
        self.clock = clock
        self.wait, self.hold, self.use = Durations(lock), Durations(lock), Durations(lock)
        self.overtime: set[object] = set()
        self._endings: list[bool] = []  # an empty deque takes 700 bytes, and most routes never hang

    @property
    def hangs(self) -> bool:
        """True in shadow while a call would hang, too: most of the last ones did, and one still does."""
        return bool(self.overtime) and 2 * sum(self._endings) > len(self._endings)

    def runs_on(self, work: object) -> None:
        """Notes in shadow work that enforcing would stop now. ``overtime`` keeps it until it ends."""
        if not self.overtime:
            self._endings.clear()
        self.overtime.add(work)
        self._note_ending(hung=True)

    def ended_in_time(self) -> None:
        """Notes a checkout that lasted no longer than enforcing allows. Needed only while work runs on."""
        self._note_ending(hung=False)

    def _note_ending(self, *, hung: bool) -> None:
        self._endings.append(hung)
        del self._endings[:-_RECENT]

    def used(self, started: float) -> None:
        """Counts a statement or command that began at ``started`` on the clock."""
        count_since(started, self.clock, self.use)


def count_since(started: float, clock: Callable[[], float], durations: Durations) -> None:
    """Counts the time since a moment; raises nothing, whatever the user's clock does."""
    try:
        seconds = clock() - started + 0.0  # raises for a reading that is not a number
        pending = durations.pending
        pending.append(seconds if 0.0 <= seconds < LONGEST else 0.0)
        if len(pending) >= BATCH:
            durations.sort()
    except Exception:  # noqa: BLE001, S110 - the figure is lost, and the call continues
        pass
