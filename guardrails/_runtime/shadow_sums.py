"""Counts what one guard would have done in shadow: refusals by route, and the longest calls past a limit.

Must not import guards. Its size is bounded, because clients can make up names of routes.
"""

from __future__ import annotations

import time
from typing import Any

from guardrails._runtime.fork import ForkedLock

__all__ = ["NO_ROUTE", "OTHER_ROUTES", "LateCall", "ShadowSums"]

NO_ROUTE, OTHER_ROUTES = "(no route)", "(other routes)"
"""The name for calls outside a request, and that of all routes beyond `_MOST_ROUTES`."""

_MOST_ROUTES = 100
_MOST_STOPS = 10
_MOST_RUNNING = 100


class LateCall:
    """A call that has passed its limit.

    Attributes:
        timeout: The limit in seconds.
        where: The application's lines that made the call, innermost first.
        route: The route of its request, or None.
        began: Its start on `time.monotonic`.
        took: Its duration in seconds; None while it runs.
    """

    __slots__ = ("began", "route", "timeout", "took", "where")

    def __init__(self, timeout: float, where: tuple[str, ...], route: str | None) -> None:
        self.timeout = timeout
        self.where = where
        self.route = route
        self.began = time.monotonic() - timeout
        self.took: float | None = None

    def seconds(self) -> float:
        """Its duration in seconds, so far while it runs."""
        return time.monotonic() - self.began if self.took is None else self.took


class ShadowSums:
    """The sums of one guard and its compartments since the process started or the guard was made.

    Attributes:
        since: The first time at which the guard went into shadow, by `time.time`; None before.
        stops: Number of calls that have passed a limit.
        admitted_before: Slots that the guard had given out before ``since``.
        openings: Number of times that a circuit of the guard or of a compartment opened in shadow.
        opened_at: The last of these times, by `time.time`; None without one.
    """

    __slots__ = (
        "_lock",
        "_longest",
        "_routes",
        "_running",
        "admitted_before",
        "opened_at",
        "openings",
        "since",
        "stops",
    )

    def __init__(self) -> None:
        self.since: float | None = None
        self.stops = self.admitted_before = self.openings = 0
        self.opened_at: float | None = None
        self._lock = ForkedLock()
        self._routes: dict[str, dict[str, int]] = {}
        self._longest: list[LateCall] = []
        self._running: dict[object, LateCall] = {}

    def begin(self, admitted: int) -> None:
        """Notes that the guard is in shadow from now on; ``admitted`` slots were given out before."""
        if self.since is None:
            self.since, self.admitted_before = time.time(), admitted

    def opened(self) -> None:
        """Notes that a circuit has opened in shadow."""
        with self._lock:
            self.openings, self.opened_at = self.openings + 1, time.time()

    def refused(self, reason: str, route: str | None) -> None:
        """Counts a call that enforcing would have refused."""
        name = NO_ROUTE if route is None else route
        with self._lock:
            if name not in self._routes and len(self._routes) >= _MOST_ROUTES:
                name = OTHER_ROUTES
            counts = self._routes.setdefault(name, {})
            counts[reason] = counts.get(reason, 0) + 1

    def stopped(self, call: object, timeout: float, where: tuple[str, ...], route: str | None) -> None:
        """Notes a call that has just passed its limit. Its end is noted by `ended`, with the same object."""
        late = LateCall(timeout, where, route)
        with self._lock:
            self.stops += 1
            if len(self._running) < _MOST_RUNNING:
                self._running[call] = late

    def ended(self, call: object) -> None:
        """Notes the end of a call that had passed its limit."""
        with self._lock:
            late = self._running.pop(call, None)
            if late is not None:
                late.took = late.seconds()
                self._longest = self._cut([*self._longest, late])

    @staticmethod
    def _cut(calls: list[LateCall]) -> list[LateCall]:
        return sorted(calls, key=LateCall.seconds, reverse=True)[:_MOST_STOPS]

    def report(self) -> dict[str, Any]:
        """The sums, for JSON."""
        with self._lock:
            routes = {route: dict(counts) for route, counts in self._routes.items()}
            longest = self._cut([*self._longest, *self._running.values()])
        return {
            "since": self.since,
            "openings": self.openings,
            "opened_at": self.opened_at,
            "routes": routes,
            "longest": [
                {
                    "took": round(late.seconds(), 3),
                    "timeout": late.timeout,
                    "running": late.took is None,
                    "where": late.where[0] if late.where else None,
                    "route": late.route,
                }
                for late in longest
            ],
        }
