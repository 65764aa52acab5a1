"""Logs a guard's refused and stopped calls, at most one line a second, and the reason for an opened circuit.

Depends on gates and the housekeeper; must not import guards. No message holds SQL, a value, a header or an
address.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from guardrails._core.breaker import Transition
from guardrails._core.gate import Gate
from guardrails._runtime.fork import ForkedLock
from guardrails._runtime.housekeeper import run_later
from guardrails._runtime.scope import current
from guardrails._runtime.shadow_sums import OTHER_ROUTES, ShadowSums
from guardrails._util.names import fields_of
from guardrails._util.weak_registry import WeakRegistry
from guardrails.errors import RejectedError

__all__ = ["LOGIN_REFUSED", "NO_ROOM", "READ_ONLY", "GuardLog", "log", "why_open"]

log = logging.getLogger("guardrails")

_count_lock = ForkedLock()
"""Held while a call is counted: on a free-threaded build two threads would otherwise count one of two."""

READ_ONLY = "the server is read-only"
LOGIN_REFUSED = "the server refuses the login"
NO_ROOM = "the server has no connection left"

_CAUSE_LASTS = 30.0
"""Seconds for which the known cause of a failure explains a circuit."""

_INTERVAL = 1.0
"""Shortest time in seconds between two lines of one guard."""

_MOST_ROUTES = 100
"""Routes of one line that are counted apart: clients can make up names of routes."""

_MOST_NOTED = 50_000
"""Calls of one line whose routes are counted."""

_ROUTES_SHOWN = 6

_RECENT = 50
"""Events that are remembered for the status page."""


class GuardLog:
    """The log of one guard and its compartments.

    It reads the counters of the gates, so a refusal outside requests costs one look at ``noted``; inside one
    its route is counted. The housekeeper writes the line, also after the last call.

    Attributes:
        name: The guard's name.
        scheduled: True while a line is due.
        noted: True if the first call of the next line has been noted.
        gates: The gates of the guard and its compartments.
        stopped: Calls that were stopped at their deadline.
        sums: What the guard would have done in shadow.
        hint: What to do about the holders when a circuit opens; empty if nothing is known.
        line_of_code: Returns the application's line that makes the call, such as ``"shop/orders.py:42 in
            load"``.
        holders: Returns words for who holds the slots of a guard or compartment; takes its name, the slots in
            use and the limit.
        recent: The last changes of circuits and leaks, for the status page.
        pool_page: Returns what the status page shows of the pool's holders; None for a guard without a pool.
    """

    __slots__ = (
        "__weakref__",
        "_cause",
        "_reported",
        "_routes",
        "_since",
        "_where",
        "gates",
        "hint",
        "holders",
        "line_of_code",
        "name",
        "noted",
        "pool_page",
        "recent",
        "scheduled",
        "stopped",
        "sums",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.scheduled = self.noted = False
        self.hint, self.stopped = "", 0
        self.sums = ShadowSums()
        self.gates: WeakRegistry[Any] = WeakRegistry()
        self.line_of_code: Callable[[], str | None] | None = None
        self.holders: Callable[[str, int, int], str | None] | None = None
        self.pool_page: Callable[[], dict[str, object]] | None = None
        self.recent: list[dict[str, Any]] = []
        self._reported: Counter[str] = Counter()
        self._routes: list[str] = []
        self._since = 0.0
        self._where = ""
        self._cause: tuple[str, float] | None = None

    def note_cause(self, words: str) -> None:
        """Notes the cause of a failure, such as `READ_ONLY`."""
        self._cause = words, time.monotonic()

    def cause(self, *, is_open: bool) -> str | None:
        """The cause of the latest failures; None if it is unknown or over.

        Args:
            is_open: True while the circuit is not closed: the cause is then current, however old it is.
        """
        known = self._cause
        if known is None or (not is_open and time.monotonic() - known[1] > _CAUSE_LASTS):
            return None
        return known[0]

    def forget_cause(self) -> None:
        """Forgets the cause: the circuit has closed."""
        self._cause = None

    def remember(self, event: str, name: str, **fields: Any) -> None:
        """Remembers an event for the status page, with the time of day."""
        recent = self.recent
        recent.append({"at": round(time.time(), 3), "event": event, **fields_of(name), **fields})
        del recent[:-_RECENT]  # a list: an empty deque takes 700 bytes, and most guards never have an event

    def schedule(self, *, at_edge: bool = False) -> None:
        """Notes the first call of the next line, and schedules that for one second from now if none is due.

        Args:
            at_edge: True for a request that was refused before the application: no line of code made it.
        """
        # No lock: an interrupt could leave it held. `noted` is set first, see `write_line`.
        if self.noted:
            return
        self.noted = True
        due, self.scheduled = self.scheduled, True
        self._where = "" if at_edge else self._caller()
        if due:
            return
        self._since = time.monotonic()
        try:
            run_later(self.write_line, _INTERVAL)
        except RuntimeError:  # no new thread can be started while the interpreter shuts down
            with suppress(Exception):
                self.write_line()

    def restart(self) -> None:
        """Forgets the line that is due: in the child of a fork nothing would write it."""
        self.scheduled = self.noted = False
        self._routes.clear()

    def note_stopped(self) -> None:
        """Counts a call that was stopped at its deadline."""
        with _count_lock:
            self.stopped += 1
        self.count_route()
        self.schedule()

    def count_route(self, route: str | None = None) -> None:
        """Counts a refused or stopped call by its route: the given one, or that of the current request."""
        if route is None:
            scope = current()
            request = None if scope is None else scope.request
            route = None if request is None else request.name or request.find_name()
        if route is not None and len(self._routes) < _MOST_NOTED:
            self._routes.append(route)

    def write_line(self) -> float | None:
        """Writes the line. Returns the seconds until the next one, or None if there was nothing to write."""
        # `noted` before the counters are read: a later call is of the next line.
        where, self.noted = self._where, False
        routes = self._count_routes()
        counts: Counter[str] = Counter()
        would: Counter[str] = Counter()
        for gate in self.gates.living():
            counts.update(gate.core.rejected)
            would.update(gate.core.would_reject)
        would["stopped"] = self.sums.stops
        counts["stopped"] = self.stopped
        counts.update({f"{_WOULD}{reason}": count for reason, count in would.items()})
        new = counts - self._reported
        if not new:
            self.scheduled = False
            self.scheduled = self.noted  # a call may have come meanwhile, and seen that a line is due
            return _INTERVAL if self.scheduled else None
        self._reported = counts
        now = time.monotonic()
        in_shadow = Counter(
            {reason.removeprefix(_WOULD): new.pop(reason) for reason in [*new] if _WOULD in reason}
        )
        parts = [*_in_words(new, ""), *_in_words(in_shadow, " in shadow")]
        parts += [each for each in (_by_route(routes), where) if each]
        try:
            seconds, words = now - self._since, "; ".join(parts)
            log.warning("guard %r: in %.1f s %s", self.name, seconds, words, extra=fields_of(self.name))
        except BaseException:  # of the application's filter or handler: the next call begins a line again
            self.restart()
            raise
        self._since = now
        return _INTERVAL

    def _count_routes(self) -> Counter[str]:
        routes: Counter[str] = Counter()
        noted, self._routes = self._routes, []
        for route in noted:
            known = route in routes or len(routes) < _MOST_ROUTES
            routes[route if known else OTHER_ROUTES] += 1
        return routes

    def _caller(self) -> str:
        """Words for the application's line that made the call; empty if it is unknown."""
        try:
            line = None if self.line_of_code is None else self.line_of_code()
        except Exception:  # logging must not break a call
            log.debug("the caller could not be determined", exc_info=True)
            return ""
        return f"such as {line}" if line else ""


_WOULD = "would be "


def _by_route(routes: Counter[str]) -> str:
    """Words for the routes of refused and stopped calls, most first; empty if none is known."""
    if not routes:
        return ""
    shown = ", ".join(f"{route} {count}" for route, count in routes.most_common(_ROUTES_SHOWN))
    rest = len(routes) - _ROUTES_SHOWN
    return f"by route: {shown}" + (f" and {rest} more routes" if rest > 0 else "")


def _in_words(new: Counter[str], how: str) -> list[str]:
    """Words for what was refused and stopped; with ``how``, for what would have been."""
    parts, would = [], "would be " if how else ""
    stopped = new.pop("stopped", 0)
    if new:
        reasons = ", ".join(
            f"{RejectedError.words_for(reason)}: {count}" for reason, count in new.most_common()
        )
        parts.append(f"{new.total()} {would}refused{how} ({reasons})")
    if stopped:
        parts.append(f"{stopped} {would}stopped at the deadline{how}")
    return parts


def why_open(
    core: Gate, change: Transition, holders: str | None, cause: str | None = None, error: str = ""
) -> str:
    """Explains why a circuit has opened, or would have opened.

    Args:
        core: The gate of the circuit.
        change: The transition.
        holders: Words for who holds the slots; None if that is unknown.
        cause: The cause of the failures; None if it is unknown.
        error: The class of the last failure's error; empty if it is unknown. Never its message.
    """
    breaker, bulkhead = core.breaker, core.bulkhead
    calls, failures, slow, _ = breaker.evidence(change.at)
    starts = breaker.start_times()
    age = max(0.0, change.at - min(starts)) if starts else 0.0
    threshold = f"{breaker.slow_after:g} s"
    last = f", the last with {error}" if error and cause is None else ""
    words = {
        "failure_rate": f"{failures} of {calls} calls failed{last}",
        "slow_call_rate": f"{slow} of {calls} calls took longer than {threshold}, or still do",
        "consecutive_failures": f"failures in a row: {breaker.streak}{last}",
        "stalled": f"every slot has been in a call for longer than {threshold}, and none came back",
        "probes_failed": "the probes failed: it is not well yet",
        "fleet": "the workers of the fleet together have reached a rate",
        "divided": "as the whole guard's was, whose first workload it is",
        "manual": "by hand",
    }
    # With compartments, a circuit may open long before the rate is reached.
    if change.cause in {"failure_rate", "slow_call_rate"} and not breaker.reaches_a_rate(
        failures, slow, calls
    ):
        words[change.cause] += ", and none has come back well since"
    parts = [words.get(change.cause, change.cause)]
    if cause is not None and change.cause != "manual":
        parts[0] += f": {cause}"
    if change.cause != "manual" and (holders or age > breaker.slow_after / 2):
        busy = f"{bulkhead.taken} of {bulkhead.limit} slots in use for up to {age:.1f} s"
        parts.append(holders or busy)
    if change.retry_after is not None:
        how = "refusing" if core.enforces else "enforcing, it would refuse"
        parts.append(f"{how} for {round(change.retry_after, 1):g} s")
    return "; ".join(parts)
