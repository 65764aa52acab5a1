"""How long a full bulkhead takes to serve those who wait, judged by how fast slots came free. Pure."""

from __future__ import annotations

__all__ = ["RetryEstimator"]

SPAN = 1.0
STALE = 10.0
"""Seconds. A rate is taken over at least the first, and says nothing any more after the second."""


class RetryEstimator:
    """The pace of one bulkhead, looked at when it refuses somebody."""

    __slots__ = ("_admitted", "_at", "_rate")

    def __init__(self) -> None:
        self._at: float | None = None
        self._admitted = 0
        self._rate: float | None = None

    def seconds(self, now: float, admitted: int, waiting: int) -> float | None:
        """Seconds until a newcomer would be served; None while nobody can tell.

        Args:
            now: The moment.
            admitted: Slots given out since the beginning.
            waiting: Callers in the queue.
        """
        since = self._at
        moved = admitted - self._admitted
        if since is None or (moved and now - since > STALE):
            self._rate = None
            self._at, self._admitted = now, admitted
        elif moved and now - since >= SPAN:
            self._rate = moved / (now - since)
            self._at, self._admitted = now, admitted
        elif now - since >= SPAN:
            return now - since  # nothing has moved: it may well stand still as long again
        return None if self._rate is None else (waiting + 1) / self._rate
