"""One connection checked out of SQLAlchemy's pool, with the limits of its work past the hooks.

Depends on the guard and limits; must not import SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guardrails._dbapi.limit import Limit
from guardrails._guard.guard import Guard
from guardrails._pool.checkout import Checkout
from guardrails._pool.frames import Caller, Site

__all__ = ["DBAPICheckout"]


class DBAPICheckout(Checkout):
    """One connection out of the pool.

    Args:
        guard: The pool's guard.
        pool: The pool.
        site: See HeldCheckout.
        caller: See HeldCheckout.

    Attributes:
        below: The earlier checkout of the same connection that is still open. A StaticPool hands out one
            connection several times.
        listener_limit: The limit of listeners that use the connection; None while no listener runs.
        checking_in: True while listeners see its return.
        ends: True while a phase of a two-phase transaction runs that must not stop in the middle.
        finalizer: Called when the proxy is dropped, where SQLAlchemy's own callback is not enough.
        listening: True while a listener of the connection's events runs.
        raw_limit: The limit of work on the driver's own connection; None if the user has not asked for that
            connection or has no deadline.
        loop: The event loop of an asynchronous connection, where its idle time is limited; else None.
        occupies: True while the checkout itself counts as work in its hold: until it is handed out, and from
            its return on.
        out_of_step: True after an error of the driver with which the connection would give wrong answers.
        pool: The pool it was taken from.
        proxy: Weak reference to SQLAlchemy's connection proxy; None until that is made.
    """

    __slots__ = (
        "below",
        "checking_in",
        "ends",
        "finalizer",
        "listener_limit",
        "listening",
        "loop",
        "occupies",
        "out_of_step",
        "pool",
        "proxy",
        "raw_limit",
    )

    def __init__(self, guard: Guard, pool: object, site: Site, caller: Caller) -> None:
        super().__init__(guard, site, caller)
        self.below: DBAPICheckout | None = None
        self.listener_limit = self.raw_limit = None
        self.finalizer: object = None
        self.pool = pool
        self.checking_in = self.ends = self.listening = self.occupies = self.out_of_step = False
        self.loop: Any = None
        self.proxy: Callable[[], object] | None = None

    listener_limit: Limit | None
    raw_limit: Limit | None

    @property
    def busy(self) -> bool:
        """True while work runs, also past the hooks: opening, checking, returning, or listeners."""
        return (
            bool(self.under_way) or self.proxy is None or self.checking_in or self.listener_limit is not None
        )

    def held_object(self) -> object:
        """See HeldCheckout."""
        return None if self.proxy is None else self.proxy()

    def is_of(self, proxy: object) -> bool:
        """True if ``proxy`` belongs to this checkout."""
        return self.proxy is not None and self.proxy() is proxy

    def take_back(self) -> bool:
        """Ends the limits of work past the hooks; False if the connection must not be used again."""
        for limit in (self.raw_limit, self.listener_limit):
            if limit is not None and limit.end():
                self.must_discard = True
        return not self.must_discard

    def release_early(self) -> None:
        """Releases the slots while the connection is still checked out: its pool was disposed of."""
        self.disposed = True
        released, self.slots = self.slots, [(gate, 0) for gate, _ in self.slots]
        for gate, slot in released:
            if slot:
                gate.check_in(slot)
