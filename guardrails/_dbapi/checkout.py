"""One connection checked out of SQLAlchemy's pool, with the limits of its work past the hooks.

Depends on the guard and limits; must not import SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Callable

from guardrails._dbapi.stopping import Limit
from guardrails._guard.guard import Guard
from guardrails._pool.checkout import Checkout
from guardrails._pool.frames import Caller, Site

__all__ = ["DBAPICheckout"]


class DBAPICheckout(Checkout):
    """One connection out of the pool.

    Args:
        guard: The pool's guard.
        pool: The pool.
        site: The application's frames that asked for the connection.
        caller: The thread, task or greenlet that ran them.

    Attributes:
        below: The earlier checkout of the same connection that is still open. A StaticPool hands out one
            connection several times.
        bracket: The limit of listeners that use the connection; None while no listener runs.
        checking_in: True while listeners see its return.
        disposed: True if its pool was disposed of; its slots were released then.
        ends: True while a phase of a two-phase transaction runs that must not stop in the middle.
        finalizer: Called when the proxy is dropped, where SQLAlchemy's own callback is not enough.
        listening: True while a listener of the connection's events runs.
        lent: The limit of work on the driver's own connection; None if the user has not asked for that
            connection or has no deadline.
        nested: True if the guard refused its holder a second connection.
        next_search: Earliest time of the next search for the code that keeps the connection.
        pool: The pool it was taken from.
        proxy: Weak reference to SQLAlchemy's connection proxy; None until that is made.
        site: The application's frames that asked for the connection.
        reported: True if it was reported as a leak.
        caller: The thread, task or greenlet that asked for the connection.
    """

    __slots__ = (
        "below",
        "bracket",
        "caller",
        "checking_in",
        "disposed",
        "ends",
        "finalizer",
        "lent",
        "listening",
        "nested",
        "next_search",
        "pool",
        "proxy",
        "reported",
        "site",
    )

    def __init__(self, guard: Guard, pool: object, site: Site, caller: Caller) -> None:
        super().__init__(guard)
        self.below: DBAPICheckout | None = None
        self.bracket = self.lent = None
        self.finalizer: object = None
        self.pool = pool
        self.site = site
        self.caller = caller
        self.next_search = 0.0
        self.checking_in = self.disposed = self.ends = self.listening = self.nested = self.reported = False
        self.proxy: Callable[[], object] | None = None

    bracket: Limit | None
    lent: Limit | None

    @property
    def busy_outside(self) -> bool:
        """True while work runs past the hooks: opening, checking, returning, or listeners."""
        return self.proxy is None or self.checking_in or self.bracket is not None

    def is_of(self, proxy: object) -> bool:
        """True if ``proxy`` belongs to this checkout."""
        return self.proxy is not None and self.proxy() is proxy

    def take_back(self) -> bool:
        """Ends the limits of work past the hooks; False if the connection must not be used again."""
        for limit in (self.lent, self.bracket):
            if limit is not None and limit.end():
                self.must_discard = True
        return not self.must_discard

    def surrender(self) -> None:
        """Releases the slots while the connection is still checked out: its pool was disposed of."""
        self.disposed = True
        released, self.slots = self.slots, [(gate, 0) for gate, _ in self.slots]
        for gate, slot in released:
            if slot:
                gate.check_in(slot)
