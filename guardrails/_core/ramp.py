"""The slots that are usable after a recovery. Depends on nothing; must not import circuits or slots.

A dependency that has just come back is slow at first: its caches are empty and its connections are new. So a
load balancer sends a growing share of the requests to a server that has come back: ``slowstart`` of HAProxy,
``slow_start`` of nginx, ``slow_start_config`` of Envoy. A `Ramp` does so with the slots of a guard.
"""

from __future__ import annotations

import math

__all__ = ["Ramp"]


class Ramp:
    """Lets the usable slots grow in proportion to the time, from a few to all.

    Args:
        since: The time of the recovery.
        seconds: The time that it takes to all slots.
        first: The slots that are usable at once; that many calls at a time are known to work.

    Attributes:
        until: The time from which every slot is usable.
    """

    __slots__ = ("_seconds", "_since", "first", "until")

    def __init__(self, since: float, seconds: float, first: int) -> None:
        self._since = since
        self._seconds = seconds
        self.first = first
        self.until = since + seconds

    def usable(self, now: float, limit: int) -> tuple[int, float]:
        """Returns the usable slots of ``limit``, and the time of the next change; infinity after the last."""
        if now >= self.until:
            return limit, math.inf
        more = limit - self.first
        if more <= 0:
            return limit, self.until
        grown = int(more * max(0.0, now - self._since) / self._seconds)
        while self._time_of(grown + 1, more) <= now:  # this division may be rounded in another way
            grown += 1
        return min(limit, self.first + grown), min(self._time_of(grown + 1, more), self.until)

    def _time_of(self, grown: int, more: int) -> float:
        return self._since + self._seconds * grown / more
