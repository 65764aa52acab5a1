"""Reports leaked connections and an exhausted pool: in the log, and leaks as events, too.

Depends on the holder registry and the housekeeper's thread; must not import pools or statements.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any, Literal

from guardrails._pool.checkout import HeldCheckout
from guardrails._pool.frames import lines
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.lock_waits import UNKNOWN_LINE
from guardrails._runtime.fork import ForkedLock, renew_after_fork
from guardrails._runtime.guard_log import log
from guardrails._runtime.housekeeper import run_later
from guardrails._util.names import fields_of
from guardrails.events import LeakFound

__all__ = ["PoolReports"]

_INTERVAL = 5.0
"""Seconds between two checks of the checkouts, while there are any."""

_RECHECK = 0.5
"""Seconds until the next diagnosis of a pool that was exhausted while its connections were being opened."""

_DIAGNOSIS_INTERVAL = 30.0
"""Seconds between two diagnoses of one pool in the log."""

_BUSY_RECHECK = 1.0
"""Seconds until the next diagnosis of a pool that was busy: by then a lock no longer looks like a burst."""

_WARNING_INTERVAL = 60.0
"""Seconds between two warnings about connections that the same line of code took."""

_DIAGNOSED = frozenset({"postgresql", "mysql", "mariadb"})
"""The kinds of servers that ``guardrails diagnose`` asks."""

_MAX_LINES = 64
"""Lines of code whose last warning is remembered."""

_MAX_SEARCHED = 64
"""Maximum number of checkouts that are searched for those of a refused caller."""

_WARNINGS = {
    "held": "a connection of %r has been held for %.1f s and nothing runs on it; it was checked out at %s",
    "dropped": "a connection of %r was dropped after %.1f s and not returned; it was checked out at %s",
}


class PoolReports:
    """Checks the checkouts of one pool every few seconds, and reports what it finds.

    Args:
        registry: The holders of the pool's connections.

    Attributes:
        watching: Whether a check is planned.
    """

    def __init__(self, registry: HolderRegistry) -> None:
        self._registry = registry
        self._guard = registry.guard
        self._gate = registry.guard.call_settings.gates[0]
        self._leak_after = registry.leak_after
        self._out = registry.out
        self._dropped: deque[dict[str, Any]] = deque()
        self._last_warning: dict[tuple[str, ...], float] = {}
        self._next_diagnosis = self._next_busy = -math.inf
        self._lock = ForkedLock()  # guards the decision to make a diagnosis, not the diagnosis
        self._rejected = self._stopped = 0
        self.watching = False
        report = self._gate.report
        report.line_of_code, report.holders = registry.calling_line, self._describe
        report.pool_page = registry.page
        if registry.figures.system in _DIAGNOSED:
            report.hint = "ask the database: guardrails diagnose"
        renew_after_fork(self)

    def watch(self) -> None:
        """Plans the first check after a checkout."""
        self.watching = True
        run_later(self._check, _INTERVAL if self._leak_after is None else min(_INTERVAL, self._leak_after))

    def dropped(self, checkout: HeldCheckout) -> None:
        """Notes a connection that the garbage collector has returned."""
        # The collector may run in the middle of a step of the gate, so the housekeeper's thread reports it.
        self._dropped.append(self._leak("dropped", checkout))
        run_later(self._check, 0.0)

    def returned(self, checkout: HeldCheckout) -> None:
        """Logs the return of a connection that was reported as a leak."""
        log.info(
            "a connection of %r came back after %.0f s; it was checked out at %s",
            self._guard.name,
            self._registry.age(checkout),
            next(iter(lines(checkout.site)), UNKNOWN_LINE),
            extra=fields_of(self._guard.name),
        )

    def refused(self) -> None:
        """Notes a caller that was refused because the pool has no connection left."""
        self._registry.ask_server()
        caller = self._registry.caller()
        for checkout in list(self._out.values())[:_MAX_SEARCHED]:
            if checkout.caller == caller:
                checkout.nested = True
        self._diagnose(refused=True)

    def _describe(self, name: str, taken: int, limit: int) -> str | None:
        """Describes the holders for the log; see `HolderRegistry.describe`."""
        self._registry.ask_server()
        description = self._registry.describe(name, taken, limit)
        if description is not None:
            self._next_diagnosis = time.monotonic() + _DIAGNOSIS_INTERVAL  # the description is a diagnosis
        return description

    def _diagnose(self, *, refused: bool) -> None:
        # A diagnosis walks stacks, so a compartment that has used up its share does not cause one.
        slots, now = self._gate.core.bulkhead, time.monotonic()
        with self._lock:
            if slots.taken < slots.limit or now < self._next_diagnosis:
                return
            # Set before the stacks are walked: callers refused meanwhile would make the same diagnosis.
            self._next_diagnosis = now + _DIAGNOSIS_INTERVAL
        # A refused caller does not wait for a search. The housekeeper's thread searches.
        status = self._registry.status(search=not refused)
        if refused and any(holder.doing == "gone" for holder in status.holders):
            self._next_diagnosis = now
            run_later(self._check, 0.0)
            return
        if status.cause == "busy":
            self._next_diagnosis = now + _BUSY_RECHECK
            if now < self._next_busy:
                return
            self._next_busy = now + _DIAGNOSIS_INTERVAL
        if status.cause != "free":
            words = str(status).replace("\n  ", "; ")
            self._gate.report.remember("exhausted", self._guard.name, cause=status.cause, words=words)
            log.warning("%s", words, extra=fields_of(self._guard.name))
            return
        # Some connections have no holder: they are being opened, or are older than the guard.
        self._next_diagnosis = now + _RECHECK / 2
        if refused:
            run_later(self._check, _RECHECK)

    def _check(self) -> float | None:
        """Reports leaks and an exhausted pool. Returns the seconds until the next check; None plans none."""
        self.watching = False  # first: a checkout from here on is seen below, or plans a check
        while self._dropped:
            self._report(self._dropped.popleft())
        # A middleware refuses requests before they ask the pool, so `refused` is not called for them.
        core = self._gate.core
        rejected = sum(core.rejected.values()) + sum(core.would_reject.values())
        before, self._rejected = self._rejected, rejected
        if self._rejected != before:
            self._registry.ask_server()
            self._diagnose(refused=False)
        # In a pool with free connections no caller is refused, and others may wait as the stopped ones did.
        report = self._gate.report
        stopped, before = report.stopped + report.sums.stops, self._stopped
        self._stopped = stopped
        if stopped != before:
            self._registry.ask_server()
        waits = [self._check_leak(checkout) for checkout in list(self._out.values())]
        self.watching = bool(waits)
        return min([_INTERVAL, *waits]) if waits else None

    def _check_leak(self, checkout: HeldCheckout) -> float:
        """Reports a checkout if it looks forgotten. Returns the seconds until it may look so."""
        if self._leak_after is None or checkout.reported or not checkout.slots:  # returned meanwhile
            return _INTERVAL
        left = self._leak_after - self._registry.age(checkout)
        if left > 0 or checkout.busy:
            return max(left, self._leak_after / 4)
        checkout.reported = True
        self._report(self._leak("held", checkout), checkout)
        return _INTERVAL

    def _leak(self, cause: Literal["held", "dropped"], checkout: HeldCheckout) -> dict[str, Any]:
        return {
            "cause": cause,
            "seconds": self._registry.age(checkout),
            "where": lines(checkout.site),
            "route": checkout.route,
        }

    def _report(self, leak: dict[str, Any], checkout: HeldCheckout | None = None) -> None:
        gate = self._gate
        gate.report.remember("leak", gate.name, **leak)
        gate.notify(LeakFound, at=gate.clock(), seq=gate.next_number(), **leak)
        now, where = time.monotonic(), leak["where"]
        if now - self._last_warning.get(where, -math.inf) < _WARNING_INTERVAL:
            return
        if len(self._last_warning) >= _MAX_LINES:
            self._last_warning.clear()
        self._last_warning[where] = now
        # The search for its holder is slow, so it is made only for a line in the log.
        advice = "" if checkout is None else f"; {self._registry.holder_of(checkout).advice}"
        route = f", for {leak['route']}" if leak["route"] else ""
        said = (" < ".join(where) or UNKNOWN_LINE) + route + advice
        name = self._guard.name
        log.warning(_WARNINGS[leak["cause"]], name, leak["seconds"], said, extra=fields_of(name))

    # --- forks ---------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:  # noqa: ARG002
        """See ForkAware."""
        return True

    def unpause(self) -> None:
        """See ForkAware."""

    def reset_in_child(self) -> None:
        """Forgets all checkouts in a child process: they are the parent's, and no check is planned."""
        self.watching = False
        self._next_diagnosis = self._next_busy = -math.inf
        self._dropped.clear()
        self._out.clear()
