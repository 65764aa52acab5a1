"""Limits of the parts of a bulkhead, such as compartments. Must not import circuits."""

from __future__ import annotations

from guardrails._core.bulkhead import Bulkhead
from guardrails._core.window import NEVER
from guardrails._core.workloads import Workload

__all__ = ["Member", "Shares", "share"]

_SHARE = 7, 10
"""Fraction of the slots that one of several active parts may hold. The other parts share the rest while the
calls of one part, or of several, hang."""

ACTIVE = 60.0
"""Seconds after its last request for a slot for which a part is active. Long compared with the gaps between
the requests of a quiet endpoint, so that a busy one does not take every slot in such a gap. (Of random
requests, six a minute on average, one in 400 is followed by a gap of a minute.)"""

QUICK = 0.5
"""Seconds; half of the default slow-call threshold. The only active part may exceed its share while its
oldest call is younger than this. Quick calls free their slots soon after another part asks; a call that waits
for a lock does not."""

FRESH = 0.002
"""Seconds for which a limit that is smaller than a share is not computed again. In a flood of requests that
would cost more than the refusals."""


def share(total: int) -> int:
    """The slots that one of several active parts may hold, of ``total``; at least 1."""
    part, whole = _SHARE
    return max(1, total * part // whole)


class Member:
    """One part of a bulkhead.

    Attributes:
        bulkhead: Its slots.
        workload: The record of how its calls end; None if nothing judges them.
        fitted_at: Time at which its limit was computed.
        is_cut: True if its limit is smaller than its share, because slots are kept for other parts.
        last_request: Time of its last request for a slot.
    """

    __slots__ = ("bulkhead", "fitted_at", "is_cut", "last_request", "workload")

    def __init__(self, bulkhead: Bulkhead, workload: Workload | None = None) -> None:
        self.bulkhead = bulkhead
        self.workload = workload
        self.is_cut = False
        self.last_request = self.fitted_at = NEVER

    def is_active(self, now: float) -> bool:
        """True if it asked for a slot in the last `ACTIVE` seconds, holds a slot or has waiters."""
        bulkhead = self.bulkhead
        return now - self.last_request < ACTIVE or bulkhead.taken > 0 or bool(bulkhead.queue)

    @property
    def hangs(self) -> bool:
        """True if it does not work and has calls in flight."""
        return not self.works and self.bulkhead.taken > 0

    def returns(self, now: float, oldest: float | None) -> bool:
        """True if one of its calls has succeeded since the oldest of those under way began."""
        return oldest is None or self.workload is None or self.workload.last_success_at >= now - oldest

    @property
    def works(self) -> bool:
        """False if its last two calls failed or were slow: one may fail for a reason of its own."""
        return self.workload is None or self.workload.bad_calls < 2  # noqa: PLR2004


class Shares:
    """Limits each part to its share; the only active part may use every slot.

    A part becomes active before it gets a slot. From then on no other part gets a slot beyond its share. A
    part keeps the slots that it holds beyond its share until its calls end.

    A part whose calls do not return must leave slots for the others: none has succeeded since the oldest of
    those under way began, or the last two were bad. Each active part that works has a claim to an equal
    number of the slots beyond one share, at least one. A part whose calls do not return gets another slot
    only if those that are free suffice for these claims, or if this is its first and it works or no part
    hangs; half of them suffice until a part is known to hang. A part that does not work has no claim. So
    those that hang leave slots for the others, however many hang, and parts whose calls return leave none: a
    slot that is kept is a slot less.

    Args:
        whole: The whole bulkhead. Without its own count, calls outside all parts would be overlooked.

    Attributes:
        total: Slots of the whole bulkhead.
        alone: The only active part, which may use every slot; None with several.
        moving: The part whose calls still hold slots of the whole that are none of its own; None without one.
        parts: All parts.
    """

    __slots__ = ("_last_other", "_whole", "alone", "moving", "parts", "total")

    def __init__(self, whole: Bulkhead) -> None:
        self._whole = whole
        self.total = whole.limit
        self.alone: Member | None = None
        self.moving: Member | None = None
        self.parts: list[Member] = []
        self._last_other: Member | None = None

    def join(self, bulkhead: Bulkhead, workload: Workload | None = None) -> Member:
        """Adds a part."""
        part = Member(bulkhead, workload)
        self.parts.append(part)
        return part

    def keeps_limits(self, part: Member, now: float) -> bool:
        """True if a request by this part changes no `limit`. Needs no lock; may return False without need."""
        alone, bulkhead = self.alone, part.bulkhead
        if part.is_cut:
            return 0 <= now - part.fitted_at < FRESH
        if bulkhead.taken >= bulkhead.limit:
            return False
        own_share = share(self.total)
        if alone is None:
            return self._whole.taken < own_share
        return alone is part and bulkhead.taken < own_share

    def note_request(self, now: float, part: Member) -> tuple[Member, ...]:
        """Notes a part's request for a slot; returns the parts whose `limit` may have changed."""
        part.last_request = now
        before = self.alone
        # Set it before the check, so that a part that becomes active meanwhile sees it and calls this.
        self.alone = part
        if self._has_other_active(now, part):
            self.alone = None
        return (part,) if before is None or before is part else (before, part)

    def limit(self, part: Member, now: float, oldest: float | None = None) -> int:
        """The slots that a part may hold now.

        Args:
            part: The part.
            now: The time.
            oldest: Age of its oldest call in flight in seconds; None without one.
        """
        part.fitted_at = now
        own_share = share(self.total)
        if part is self.alone:
            part.is_cut = False
            return self.total if oldest is None or oldest < QUICK else own_share
        if part.works and part.returns(now, oldest):
            part.is_cut = False
            return own_share
        # Where no slot is free, its caller waits in front of the part. In the queue of the whole it would get
        # the slot that a part which works returns.
        free = self.total - self.outside() - sum(each.bulkhead.taken for each in self.parts)
        may_try = part.works or not any(each.hangs for each in self.parts)
        most = max(int(may_try), self._held(part) + free - self._kept_from(part, now))
        part.is_cut = most < own_share
        return min(most, own_share)

    def _kept_from(self, part: Member, now: float) -> int:
        """The slots that a part must leave free for the claims of others."""
        others = [each for each in self.parts if each is not part and each.is_active(now)]
        spare = self.total - share(self.total)
        most_kept = spare if part.hangs or any(each.hangs for each in others) else (spare + 1) // 2
        claim = max(1, most_kept // max(1, len(others)))
        return min(most_kept, sum(max(0, claim - self._held(each)) for each in others if each.works))

    def _held(self, part: Member) -> int:
        return part.bulkhead.taken + (self.outside() if part is self.moving else 0)

    def outside(self) -> int:
        """Slots of the bulkhead that are in use by calls without a slot of any part."""
        return max(0, self._whole.taken - sum(each.bulkhead.taken for each in self.parts))

    def _has_other_active(self, now: float, part: Member) -> bool:
        other = self._last_other  # the part found last time is usually still active
        if other is not None and other is not part and other.is_active(now):
            return True
        others = (each for each in self.parts if each is not part and each.is_active(now))
        self._last_other = next(others, None)
        return self._last_other is not None
