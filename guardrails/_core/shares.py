"""How many slots each part of a bulkhead may have while others want some. Knows no circuit and no lock."""

from __future__ import annotations

from itertools import takewhile

from guardrails._core.bulkhead import Bulkhead

__all__ = ["Shares", "share"]

_SHARE = 7, 10
"""A part's slots of the whole, as a fraction: enough for one workload to use the pool well, and three
tenths left for everybody else whatever happens to it."""

ACTIVE = 60.0
"""Seconds for which a part that has asked for a slot counts as active. Long against the gaps between the
requests of a quiet endpoint: between two of them a busy one must not take what keeps the quiet one alive.
(Requests that come at random six times a minute leave a gap of a minute once in 400 times.)"""


def share(total: int) -> int:
    """A part's slots while there are others."""
    part, whole = _SHARE
    return max(1, total * part // whole)


class Shares:
    """Says who is active: a part alone may have every slot, one of several its share.

    A part is *active* when it asked for a slot in the last `ACTIVE` seconds, or holds one, or waits for
    one. Whoever asks becomes active before it gets anything, so from then on no other part gets a slot
    beyond its share; what one already holds beyond it, it keeps until it gives it back.

    Attributes:
        total: Slots of the whole.
        alone: The one part that may have them all, if there is such a one.
        active: When each active part asked last, longest ago first.
    """

    __slots__ = ("active", "alone", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.alone: Bulkhead | None = None
        self.active: dict[Bulkhead, float] = {}

    def ask(self, now: float, part: Bulkhead) -> tuple[Bulkhead, ...]:
        """Notes that a part wants a slot; returns the parts whose `limit` is another one now."""
        self.active.pop(part, None)
        self.active[part] = now
        self._forget_idle(now)
        alone = part if len(self.active) == 1 else None
        before, self.alone = self.alone, alone
        return () if alone is before else tuple(one for one in (before, alone) if one is not None)

    def limit(self, part: Bulkhead) -> int:
        """The slots that a part may have now."""
        return self.total if part is self.alone else share(self.total)

    def _forget_idle(self, now: float) -> None:
        # In the order of asking, so the first that asked lately ends the search.
        long_ago = takewhile(lambda part: now - self.active[part] >= ACTIVE, self.active)
        for part in [part for part in long_ago if not part.taken and not part.queue]:
            del self.active[part]
