"""The limit of each part of a bulkhead while other parts want slots. No circuit, no lock."""

from __future__ import annotations

from guardrails._core.bulkhead import Bulkhead
from guardrails._core.window import NEVER

__all__ = ["Member", "Shares", "share"]

_SHARE = 7, 10
"""A part's slots of the whole, as a fraction: enough for one workload to use the pool well, and three
tenths left for everybody else whatever happens to it."""

ACTIVE = 60.0
"""Seconds for which a part that has asked for a slot counts as active. Long against the gaps between the
requests of a quiet endpoint: between two of them a busy one must not take what keeps the quiet one alive.
(Requests that come at random six times a minute leave a gap of a minute once in 400 times.)"""

QUICK = 0.5
"""Seconds, half of what is slow by default. A part alone may exceed its share while its oldest call is
younger than this. A slot that is lent to quick calls is back when somebody else wants it; one lent to a call
that waits for a lock is not."""


def share(total: int) -> int:
    """A part's slots while there are others."""
    part, whole = _SHARE
    return max(1, total * part // whole)


class Member:
    """One part, as the others see it.

    Attributes:
        bulkhead: Its slots.
        asked: When it asked for one last.
    """

    __slots__ = ("asked", "bulkhead")

    def __init__(self, bulkhead: Bulkhead) -> None:
        self.bulkhead = bulkhead
        self.asked = NEVER

    def is_active(self, now: float) -> bool:
        """True if it asked for a slot in the last `ACTIVE` seconds, or holds one, or waits for one."""
        bulkhead = self.bulkhead
        return now - self.asked < ACTIVE or bulkhead.taken > 0 or bool(bulkhead.queue)


class Shares:
    """Decides who may have how much: a part alone may have every slot, one of several its share.

    Whoever asks becomes active before it gets anything. So from then on no other part gets a slot beyond its
    share; what one already holds beyond it, it keeps until it gives it back.

    Attributes:
        total: Slots of the whole.
        alone: The one part that may have them all, if there is such a one.
        parts: All of them.
    """

    __slots__ = ("_company", "alone", "parts", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.alone: Member | None = None
        self.parts: list[Member] = []
        self._company: Member | None = None

    def join(self, bulkhead: Bulkhead) -> Member:
        """Adds a part."""
        part = Member(bulkhead)
        self.parts.append(part)
        return part

    def nothing_changes(self, part: Member) -> bool:
        """True if a part that asks now changes nobody's `limit`. Needs no lock; may say False in doubt."""
        alone, bulkhead = self.alone, part.bulkhead
        if bulkhead.taken >= bulkhead.limit:
            return False
        return alone is None or (alone is part and bulkhead.taken < share(self.total))

    def ask(self, now: float, part: Member) -> tuple[Member, ...]:
        """Notes that a part wants a slot; returns the parts whose `limit` may be another one now."""
        part.asked = now
        before = self.alone
        # First, so that one who becomes active this very moment sees it and comes here after us.
        self.alone = part
        if self._has_company(now, part):
            self.alone = None
        return tuple({one: None for one in (before, self.alone) if one is not None})

    def limit(self, part: Member, oldest: float | None = None) -> int:
        """The slots that a part may have now.

        Args:
            part: The part.
            oldest: Seconds for which its oldest call has been under way; None without one.
        """
        lent = part is self.alone and (oldest is None or oldest < QUICK)
        return self.total if lent else share(self.total)

    def _has_company(self, now: float, part: Member) -> bool:
        company = self._company  # who was there the last time is so still, as a rule
        if company is not None and company is not part and company.is_active(now):
            return True
        self._company = next((one for one in self.parts if one is not part and one.is_active(now)), None)
        return self._company is not None
