"""Limits of the parts of a bulkhead, such as compartments. Depends on bulkheads; must not import circuits."""

from __future__ import annotations

from guardrails._core.bulkhead import Bulkhead
from guardrails._core.window import NEVER

__all__ = ["Member", "Shares", "share"]

_SHARE = 7, 10
"""Fraction of the slots that one of several active parts may hold. It leaves three tenths for the others when
calls of that part hang."""

ACTIVE = 60.0
"""Seconds after its last request for a slot for which a part is active. Long compared with the gaps between
the requests of a quiet endpoint, so that a busy one does not take every slot in such a gap. (Of random
requests, six a minute on average, one in 400 is followed by a gap of a minute.)"""

QUICK = 0.5
"""Seconds; half of the default slow-call threshold. The only active part may exceed its share while its
oldest call is younger than this. Quick calls free their slots soon after another part asks; a call that waits
for a lock does not."""


def share(total: int) -> int:
    """The slots that one of several active parts may hold, of ``total``; at least 1."""
    part, whole = _SHARE
    return max(1, total * part // whole)


class Member:
    """One part of a bulkhead.

    Attributes:
        bulkhead: Its slots.
        last_request: Time of its last request for a slot.
    """

    __slots__ = ("bulkhead", "last_request")

    def __init__(self, bulkhead: Bulkhead) -> None:
        self.bulkhead = bulkhead
        self.last_request = NEVER

    def is_active(self, now: float) -> bool:
        """True if it asked for a slot in the last `ACTIVE` seconds, holds a slot or has waiters."""
        bulkhead = self.bulkhead
        return now - self.last_request < ACTIVE or bulkhead.taken > 0 or bool(bulkhead.queue)


class Shares:
    """Limits each part to its share; the only active part may use every slot.

    A part becomes active before it gets a slot. From then on no other part gets a slot beyond its share. A
    part keeps the slots that it holds beyond its share until its calls end.

    Attributes:
        total: Slots of the whole bulkhead.
        alone: The only active part, which may use every slot; None with several.
        parts: All parts.
    """

    __slots__ = ("_last_other", "alone", "parts", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.alone: Member | None = None
        self.parts: list[Member] = []
        self._last_other: Member | None = None

    def join(self, bulkhead: Bulkhead) -> Member:
        """Adds a part."""
        part = Member(bulkhead)
        self.parts.append(part)
        return part

    def keeps_limits(self, part: Member) -> bool:
        """True if a request by this part changes no `limit`. Needs no lock; may return False without need."""
        alone, bulkhead = self.alone, part.bulkhead
        if bulkhead.taken >= bulkhead.limit:
            return False
        return alone is None or (alone is part and bulkhead.taken < share(self.total))

    def note_request(self, now: float, part: Member) -> tuple[Member, ...]:
        """Notes a part's request for a slot; returns the parts whose `limit` may have changed."""
        part.last_request = now
        before = self.alone
        # Set it before the check, so that a part that becomes active meanwhile sees it and calls this.
        self.alone = part
        if self._has_other_active(now, part):
            self.alone = None
        return tuple({one: None for one in (before, self.alone) if one is not None})

    def limit(self, part: Member, oldest: float | None = None) -> int:
        """The slots that a part may hold now.

        Args:
            part: The part.
            oldest: Age of its oldest call in flight in seconds; None without one.
        """
        may_exceed = part is self.alone and (oldest is None or oldest < QUICK)
        return self.total if may_exceed else share(self.total)

    def _has_other_active(self, now: float, part: Member) -> bool:
        other = self._last_other  # the part found last time is usually still active
        if other is not None and other is not part and other.is_active(now):
            return True
        others = (each for each in self.parts if each is not part and each.is_active(now))
        self._last_other = next(others, None)
        return self._last_other is not None
