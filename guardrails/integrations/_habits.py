"""What the requests of one route usually touch, learnt from those that were served. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from guardrails._passage import Passage

__all__ = ["Habit", "Habits"]

NEARLY_ALL = 0.95
ENOUGH = 20
MEMORY = 200
"""Requests. From so many on there is a habit; it is looked at again after as many; and at the third number
everything is halved, so that a route that changes its ways is known anew after a few hundred requests."""

PROMPT = 0.1
"""Seconds. A slot is held for a request that will want it this soon. Held for one that talks to somebody
else first, it would be missing to the others for all that time."""

MOST_GUARDS = 16


class Habit(NamedTuple):
    """A guard that nearly all requests touch, and whether nearly all of them do so promptly."""

    passage: Passage
    attached: bool
    prompt: bool


class _Count:
    __slots__ = ("prompt", "seen", "touched")

    def __init__(self, seen: int) -> None:
        self.seen = seen
        self.touched = self.prompt = 0


class Habits:
    """The habits of one route.

    Attributes:
        usual: What nearly all of its requests touch, as last looked at.
    """

    __slots__ = ("_counts", "_requests", "usual")

    def __init__(self) -> None:
        self._counts: dict[Passage, _Count] = {}
        self._requests = 0
        self.usual: tuple[Habit, ...] = ()

    def learn(self, touched: Mapping[Passage, float], began: float, *, troubled: bool) -> None:
        """Learns from a request that has been served.

        Args:
            touched: The guards it came to, and when.
            began: When the application got it.
            troubled: Whether a guard refused it or stopped it. It then says nothing about the guards
                it did not get to.
        """
        counts = self._counts
        for passage in touched:
            if passage not in counts and len(counts) < MOST_GUARDS:
                counts[passage] = _Count(self._requests)
        for passage, count in counts.items():
            at = touched.get(passage)
            if at is not None:
                count.seen += 1
                count.touched += 1
                count.prompt += at - began <= PROMPT
            elif not troubled:
                count.seen += 1
        self._requests += 1
        if self._requests % ENOUGH == 0:
            self._look()

    def _look(self) -> None:
        self.usual = tuple(
            Habit(passage, passage.attached, _nearly(count.prompt, count.seen))
            for passage, count in self._counts.items()
            if count.seen >= ENOUGH // 2 and _nearly(count.touched, count.seen)
        )
        if self._requests >= MEMORY:
            self._requests //= 2
            for passage, count in list(self._counts.items()):
                count.seen //= 2
                count.touched //= 2
                count.prompt //= 2
                if not count.touched:
                    del self._counts[passage]


def _nearly(part: int, whole: int) -> bool:
    return part >= NEARLY_ALL * whole
