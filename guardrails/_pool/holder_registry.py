"""Records who has connections out of one pool.

Depends on the frames of callers; must not import pools or statements: every kind of pool uses it.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import asdict, fields, replace
from typing import Any

from guardrails._guard.guard import Guard, lease_of
from guardrails._pool.checkout import HeldCheckout
from guardrails._pool.figures import PoolFigures
from guardrails._pool.frames import (
    Caller,
    callers,
    in_driver,
    lines,
    site,
    site_outside,
    stack_of,
)
from guardrails._pool.holders import Doing, Holder, PoolStatus, advice, busiest, cause_of
from guardrails._pool.lock_monitor import LONGEST_DELAY, LockMonitor, Question
from guardrails._pool.lock_waits import CodeLocation
from guardrails._pool.lost_holders import find_gone
from guardrails._pool.revoked_sessions import RevokedSessions
from guardrails._pool.sessions import ServerView, SessionId

__all__ = ["HolderRegistry"]

_MAX_ON_PAGE = 100
"""Maximum number of holders on the status page; those out longest come first."""

CheckedOut = MutableMapping[Any, Any]
"""The checkouts of a pool, each a `HeldCheckout`."""


class HolderRegistry:
    """The holders of the connections of one pool.

    Args:
        guard: The pool's guard.
        out: The checkouts by the pool's record of the connection. The pool's admission changes it.
        leak_after: Seconds after which a connection on which nothing runs counts as a leak; None is never.
        is_async: Whether asyncio tasks take the connections.
        system: The kind of server; see `PoolFigures`.

    Attributes:
        caller: Returns the thread or task that runs now.
        figures: The pool's figures.
        failed_cancels: Returns the number of cancel requests that did not reach the server.
        guard: The pool's guard.
        leak_after: See above.
        locks: Asks the server which sessions the connections wait for; None where it is not asked.
        out: See above.
        revoked_sessions: Asks the server for the sessions of connections that were taken back; None where it
            is not asked.
        session_ids: Returns the server's sessions of the connections that are out, by their checkouts.
        site: Returns the application's code around a frame of the pool.
    """

    def __init__(
        self, guard: Guard, out: CheckedOut, leak_after: float | None, *, is_async: bool, system: str
    ) -> None:
        self.caller = callers(is_async=is_async)
        self.failed_cancels: Callable[[], int] = int  # 0 until the pool is attached
        self.figures = PoolFigures(guard, system)
        self.guard = guard
        self.leak_after = leak_after
        self.locks: LockMonitor | None = None
        self.out = out
        self.revoked_sessions: RevokedSessions | None = None
        self.session_ids: Callable[[], Mapping[Any, SessionId]] = dict  # none until the pool is attached
        self.site = site_outside if is_async else site
        self._gate = guard.call_settings.gates[0]

    def status(self, *, search: bool = True) -> PoolStatus:
        """Returns the state of the pool now.

        Args:
            search: As for `holders`.
        """
        holders = self.holders(search=search)
        seen = self.figures.snapshot()
        return PoolStatus(
            **{field.name: getattr(seen, field.name) for field in fields(seen)},
            name=self.guard.name,
            checked_out=self._gate.core.bulkhead.taken,
            holders=holders,
            failed_cancels=self.failed_cancels(),
            cause=cause_of(holders, seen.capacity, self._slow_from()),
            lock_waits=() if self.locks is None else self.locks.waits(),
        )

    def holders(self, *, search: bool = True) -> tuple[Holder, ...]:
        """Returns the holders of the connections that are out, the longest first.

        Args:
            search: Whether to search the process for code that holds a connection after its caller has ended.
        """
        out = [checkout for checkout in list(self.out.values()) if not checkout.disposed]
        of_each = Counter(_key(checkout.caller) for checkout in out if not checkout.is_left_behind)
        holders = [self._holder(checkout, nested=of_each[_key(checkout.caller)] > 1) for checkout in out]
        known = self.session_ids()
        for index, checkout in enumerate(out):
            if checkout in known:
                blocked_by = () if self.locks is None else self.locks.blockers(checkout)
                holders[index] = replace(holders[index], **known[checkout]._asdict(), blocked_by=blocked_by)
        if search:
            find_gone(out, holders, self.caller())
        return tuple(sorted(holders, key=lambda holder: -holder.seconds))

    def holder_of(self, checkout: HeldCheckout) -> Holder:
        """Returns the holder of one checkout; it searches the process if its caller has ended."""
        holders = [self._holder(checkout, nested=False)]
        find_gone([checkout], holders, self.caller())
        return holders[0]

    def page(self) -> dict[str, object]:
        """Returns the cause and the holders as the status page shows them."""
        holders = self.holders(search=False)
        cause = cause_of(holders, self._gate.core.bulkhead.limit, self._slow_from())
        return {
            "cause": cause,
            "advice": advice(cause, self.figures.system),
            "lock_waits": [] if self.locks is None else [asdict(wait) for wait in self.locks.waits()],
            "holders": [
                asdict(each) | {"blocked_by": [blocker.pid for blocker in each.blocked_by]}
                for each in holders[:_MAX_ON_PAGE]
            ],
        }

    def forgotten(self, older_than: float | None) -> tuple[Holder, ...]:
        """Returns the holders of connections that look forgotten, the longest first.

        Args:
            older_than: Seconds after which a connection counts on which nothing runs; None: ``leak_after``.
        """
        limit = self.leak_after if older_than is None else older_than
        least = math.inf if limit is None else limit
        return tuple(
            holder
            for holder in self.holders()
            if holder.doing == "gone"
            or (holder.doing not in {"statement", "waiting"} and holder.seconds >= least)
        )

    def watch_locks(self, question: Question) -> None:
        """Asks the server for locks when the pool runs out; `session_ids` must be known."""
        guard = self.guard
        self.locks = LockMonitor(
            guard.name,
            self.session_ids,
            self.location,
            question,
            self._slow_from(),
            lambda: guard.mode != "off",
            self._compare,
            lambda words: guard.call_settings.gates[0].report.remember("lock_waits", guard.name, words=words),
        )

    def _slow_from(self) -> float:
        """Returns the seconds from which on a statement takes long."""
        policy, timeout = self.guard.call_settings.policy, self.guard.timeout
        limits = [LONGEST_DELAY]
        if policy is not None:
            limits.append(policy.slow_call_duration_threshold)
        if timeout is not None:
            limits.append(timeout / 2)
        return min(limits)

    def _compare(self, view: ServerView) -> None:
        """Compares the connections of the pool's role with the budget of its fleet."""
        lease = lease_of(self.guard)
        if lease is not None:
            lease.compare(sum(session.user == view.asker.user for session in view.sessions))

    def ask_server(self) -> None:
        """Asks the server a little later which sessions the connections wait for; see `LockMonitor`."""
        if self.locks is not None:
            self.locks.request()

    def location(self, checkout: HeldCheckout) -> CodeLocation:
        """Returns the code that holds a checkout."""
        return CodeLocation(lines(checkout.site), checkout.route)

    def age(self, checkout: HeldCheckout) -> float:
        """Returns the seconds since a checkout got its connection; before that, since it got its slot."""
        now = self._gate.clock()
        if checkout.since:  # set without a slot, too: when off, beyond the slots in shadow, after its return
            return now - checkout.since
        slots = checkout.slots
        return now - self._gate.core.checkouts.get(slots[-1][1], (now, 0))[0] if slots else 0.0

    def describe(self, name: str, taken: int, limit: int) -> str | None:
        """Describes the largest group of holders in one line; None without holders.

        Args:
            name: The name of the guard or of a compartment.
            taken: Slots that are taken.
            limit: Slots that there are.
        """
        holders = [each for each in self.holders(search=False) if name in {self.guard.name, each.compartment}]
        return busiest(holders, taken, limit) or None

    def calling_line(self) -> str | None:
        """Returns the application's line that calls now; None if only servers and frameworks call."""
        where = self.site(sys._getframe(1))  # noqa: SLF001 - documented
        return lines(where)[0] if where else None

    def _holder(self, checkout: HeldCheckout, *, nested: bool) -> Holder:
        left_behind = checkout.is_left_behind
        now = None if left_behind else stack_of(checkout.caller, checkout.site)
        doing: Doing = "other_work"
        if checkout.held_on_purpose:
            doing = "waiting"
        elif checkout.busy or (not left_behind and in_driver(checkout.caller)):
            doing = "statement"
        elif not checkout.is_kept(now):
            # The request for which it was taken decides, not the function that has returned.
            request = checkout.request
            is_open = request is not None and request.is_open
            doing, now = ("other_work" if is_open else "gone"), None
        elif nested or checkout.nested:
            doing = "nested"
        return Holder(
            seconds=self.age(checkout),
            doing=doing,
            where=lines(checkout.site),
            now=() if now is None else lines(now),
            route=checkout.route,
            compartment=None if checkout.guard is self.guard else checkout.guard.name,
        )


def _key(caller: Caller) -> int:
    # Every reference to one task is the same object, and a dead reference cannot be hashed.
    return caller if isinstance(caller, int) else id(caller)
