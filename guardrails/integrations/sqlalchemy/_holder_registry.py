"""Who has connections out of one pool, and which of them look forgotten. Knows checkouts, no statements."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Literal

from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._guard.guard import Guard
from guardrails._pool.frames import (
    Caller,
    callers,
    in_driver,
    is_plumbing,
    lines,
    site,
    site_outside,
    stack_of,
)
from guardrails._pool.holders import Doing, Holder, PoolStatus, busiest, cause_of
from guardrails._runtime.fork import renew_after_fork
from guardrails._runtime.guard_log import log
from guardrails._runtime.housekeeper import run_later
from guardrails.events import LeakFound
from guardrails.integrations.sqlalchemy._lost_holders import is_in, search_for_gone

if TYPE_CHECKING:
    from sqlalchemy.pool import Pool

__all__ = ["HolderRegistry"]

_PACE = 5.0
"""Seconds between two looks at what is out, while anything is."""

_SOON = 0.5
"""Seconds after which a pool that ran out while its connections were being opened is looked at again."""

CheckedOut = MutableMapping[Any, DBAPICheckout]

_QUIET = 30.0
"""Seconds between two diagnoses of one pool in the log."""

_SAME = 60.0
"""Seconds between two warnings of connections that were taken at the same place."""

_MOST_PLACES = 64

_ASKED_OF = 64
"""Holders that a caller who finds the pool empty is looked for among."""


class HolderRegistry:
    """Who holds the connections of one pool.

    Args:
        guard: The pool's guard.
        out: What is out, by the pool's record; the pool's admission keeps it.
        leak_after: Seconds after which a connection on which nothing runs is told of; None is never.
        is_async: Whether tasks take the connections.

    Attributes:
        caller: Says who runs it.
        failed_cancels: Counts the orders to stop that did not reach the server.
        site: Says which code of the application is around a frame of the pool's.
        watched: Whether somebody will look at what is out.
    """

    def __init__(self, guard: Guard, out: CheckedOut, leak_after: float | None, *, is_async: bool) -> None:
        self.caller = callers(is_async=is_async)
        self.failed_cancels: Callable[[], int] = int  # none
        self.site = site_outside if is_async else site
        self._guard = guard
        self._gate = guard.call_settings.gates[0]
        self._out = out
        self._leak_after = leak_after
        self._dropped: deque[dict[str, Any]] = deque()
        self._told: dict[tuple[str, ...], float] = {}
        self._next_diagnosis = -math.inf
        self._refused = 0
        self.watched = False
        report = self._gate.report
        report.line_of_code, report.holders = self._asking_line, self.in_words
        renew_after_fork(self)

    # --- who has what --------------------------------------------------------------------------

    def status(self, pool: Pool | None, *, search: bool = True) -> PoolStatus:
        """The pool at this moment.

        Args:
            pool: The live pool; without it the number of idle connections is not known.
            search: As for `holders`.
        """
        holders = self.holders(search=search)
        seen = self._guard.snapshot()
        checked_in = getattr(pool, "checkedin", None)
        return PoolStatus(
            name=self._guard.name,
            capacity=seen.max_concurrent_calls,
            checked_out=seen.in_use,
            idle=checked_in() if callable(checked_in) else 0,
            waiting=seen.waiting,
            holders=holders,
            failed_cancels=self.failed_cancels(),
            cause=cause_of(holders, seen.max_concurrent_calls),
        )

    def holders(self, *, search: bool = True) -> tuple[Holder, ...]:
        """The holders of the connections that are out, the longest first.

        Args:
            search: Whether to look through the process for the code that holds what its caller has left.
        """
        out = [checkout for checkout in list(self._out.values()) if not checkout.disposed]
        of_each = Counter(_key(checkout.caller) for checkout in out)
        holders = [self._holder(checkout, nested=of_each[_key(checkout.caller)] > 1) for checkout in out]
        if search:
            search_for_gone(out, holders, self.caller())
        return tuple(sorted(holders, key=lambda holder: -holder.seconds))

    def forgotten(self, older_than: float | None) -> tuple[Holder, ...]:
        """The holders of connections that seem forgotten, the longest first.

        Args:
            older_than: Seconds after which a connection on which nothing runs counts; None takes the guard's.
        """
        limit = self._leak_after if older_than is None else older_than
        least = math.inf if limit is None else limit
        return tuple(
            holder
            for holder in self.holders()
            if holder.doing == "gone" or (holder.doing != "statement" and holder.seconds >= least)
        )

    def _holder(self, checkout: DBAPICheckout, *, nested: bool) -> Holder:
        now = stack_of(checkout.caller)
        doing: Doing = "other_work"
        if checkout.under_way or checkout.busy_outside or in_driver(checkout.caller):
            doing = "statement"
        elif not is_in(checkout.site, now):
            doing, now = "gone", None
        elif nested or checkout.nested:
            doing = "nested"
        return Holder(
            seconds=self._age(checkout),
            doing=doing,
            where=lines(checkout.site),
            now=() if now is None else lines(now),
            route=_route(checkout),
            compartment=None if checkout.guard is self._guard else checkout.guard.name,
        )

    def _age(self, checkout: DBAPICheckout) -> float:
        now = self._gate.clock()
        slots = checkout.slots
        # The gate has written it down; given back meanwhile, it is nobody's any more.
        return now - self._gate.core.checkouts.get(slots[-1][1], (now, 0))[0] if slots else 0.0

    def in_words(self, name: str, taken: int, limit: int) -> str | None:
        """The largest group of holders in the guard, or in a compartment of this name, in one line."""
        here = self.holders(search=False)
        holders = [each for each in here if name in {self._guard.name, each.compartment}]
        if not holders:
            return None
        self._next_diagnosis = time.monotonic() + _QUIET  # this is one
        return busiest(holders, taken, limit)

    def _asking_line(self) -> str | None:
        """The application's line that asks; None where there is nothing but servers and frameworks."""
        where = self.site(sys._getframe(1))  # noqa: SLF001 - documented
        return None if is_plumbing(where[0][0].co_filename) else lines(where)[0]

    # --- what is told of it --------------------------------------------------------------------

    def watch(self) -> None:
        """Somebody has taken a connection, and nobody looks after them."""
        self.watched = True
        run_later(self._look, _PACE if self._leak_after is None else min(_PACE, self._leak_after))

    def dropped(self, checkout: DBAPICheckout) -> None:
        """The garbage collector has given a connection back."""
        # It runs where it likes, even in the middle of a step of the guard. So others do the telling.
        self._dropped.append(self._found("dropped", checkout))
        run_later(self._look, 0.0)

    def returned(self, checkout: DBAPICheckout) -> None:
        """A connection that was told of has come back."""
        log.info(
            "a connection of %r came back after %.0f s; it was taken at %s",
            self._guard.name,
            self._age(checkout),
            lines(checkout.site)[0],
        )

    def refused(self, pool: Pool) -> None:
        """A caller has found the pool empty."""
        caller = self.caller()
        for checkout in list(self._out.values())[:_ASKED_OF]:
            if checkout.caller == caller:
                checkout.nested = True
        self._diagnose(pool)

    def _diagnose(self, pool: Pool | None) -> None:
        # Stacks are looked through for it: not for each refusal of a compartment that has used up its share.
        slots, now = self._gate.core.bulkhead, time.monotonic()
        if slots.taken < slots.limit or now < self._next_diagnosis:
            return
        # A refused caller does not wait for a search; the housekeeper does it.
        status = self.status(pool, search=pool is None)
        if pool is not None and any(holder.doing == "gone" for holder in status.holders):
            run_later(self._look, 0.0)
            return
        if status.cause != "free":
            self._next_diagnosis = now + _QUIET
            log.warning("%s", str(status).replace("\n  ", "; "))
            return
        # Some are still being opened, and have no holder yet. (Or they are older than the guard.)
        self._next_diagnosis = now + _SOON / 2
        if pool is not None:
            run_later(self._look, _SOON)

    def _look(self) -> float | None:
        """Tells of what looks forgotten or exhausted; the seconds until the next look."""
        self.watched = False  # first: who takes a connection from here on is seen, or asks for a look
        while self._dropped:
            self._tell(self._dropped.popleft())
        # A middleware refuses before anybody asks the pool.
        before, self._refused = self._refused, sum(self._guard.snapshot().rejected.values())
        if self._refused != before:
            self._diagnose(None)
        left = [self._left(checkout) for checkout in list(self._out.values())]
        self.watched = bool(left)
        return min([_PACE, *left]) if left else None

    def _left(self, checkout: DBAPICheckout) -> float:
        """Tells of a connection if it looks forgotten; the seconds until it may."""
        if self._leak_after is None or checkout.reported:
            return _PACE
        left = self._leak_after - self._age(checkout)
        if left > 0 or checkout.under_way:
            return max(left, self._leak_after / 4)
        checkout.reported = True
        self._tell(self._found("held", checkout))
        return _PACE

    def _found(self, cause: Literal["held", "dropped"], checkout: DBAPICheckout) -> dict[str, Any]:
        return {
            "cause": cause,
            "seconds": self._age(checkout),
            "where": lines(checkout.site),
            "route": _route(checkout),
        }

    def _tell(self, found: dict[str, Any]) -> None:
        gate = self._gate
        gate.tell(LeakFound, at=gate.clock(), seq=gate.next_number(), **found)
        now, place = time.monotonic(), found["where"]
        if now - self._told.get(place, -math.inf) < _SAME:
            return
        if len(self._told) >= _MOST_PLACES:
            self._told.clear()
        self._told[place] = now
        log.warning(_WORDS[found["cause"]], self._guard.name, found["seconds"], " < ".join(place))

    # --- forks ---------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:  # noqa: ARG002
        """See Survivor."""
        return True

    def unpause(self) -> None:
        """See Survivor."""

    def start_afresh(self) -> None:
        """In the child: nobody looks there, and what is out is the parent's."""
        self.watched = False
        self._dropped.clear()
        self._out.clear()


_WORDS = {
    "held": "a connection of %r has been out for %.1f s and nothing runs on it; it was taken at %s",
    "dropped": "a connection of %r was dropped after %.1f s and not given back; it was taken at %s",
}


def _key(caller: Caller) -> int:
    # All references to one task are one object; and a dead one cannot be hashed.
    return caller if isinstance(caller, int) else id(caller)


def _route(checkout: DBAPICheckout) -> str | None:
    return None if checkout.request is None else checkout.request.template()
