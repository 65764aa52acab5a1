"""Estimates when a full bulkhead has a slot again, by the rate at which it gave out slots. Pure."""

from __future__ import annotations

__all__ = ["RetryEstimator"]

MINIMUM_SPAN = 1.0
MAXIMUM_AGE = 10.0
"""Seconds. A rate is measured over at least the first, and discarded after the second."""


class RetryEstimator:
    """Measures the rate of one bulkhead, each time it refuses a caller."""

    __slots__ = ("_admitted", "_at", "_rate")

    def __init__(self) -> None:
        self._at: float | None = None
        self._admitted = 0
        self._rate: float | None = None

    def seconds(self, now: float, admitted: int, waiting: int) -> float | None:
        """Estimates the seconds until a new caller would get a slot; None without a measured rate.

        Args:
            now: The current time in seconds.
            admitted: The number of slots given out since the start.
            waiting: The number of callers in the queue.
        """
        since = self._at
        moved = admitted - self._admitted
        if since is None or (moved and now - since > MAXIMUM_AGE):
            self._rate = None
            self._at, self._admitted = now, admitted
        elif moved and now - since >= MINIMUM_SPAN:
            self._rate = moved / (now - since)
            self._at, self._admitted = now, admitted
        elif now - since >= MINIMUM_SPAN:
            return now - since  # no slot came free: assume that it takes as long again
        return None if self._rate is None else (waiting + 1) / self._rate
