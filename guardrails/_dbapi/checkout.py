"""One connection out of SQLAlchemy's pool: who has it, and what bounds the work on it past our hooks."""

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
        next_search: The moment from which it is worth looking again for the code that keeps it.
        pool: The pool.
        site: See below.
        caller: See below.

    Attributes:
        below: The checkout that had the connection before, and still has: a StaticPool lets the same one
            out several times.
        bracket: Stops listeners that use the connection; None while no listener runs.
        checking_in: Whether listeners see its return.
        disposed: Whether its pool was disposed of, and its slots with it.
        ends: Whether the statements under way are of a phase that must not be given up in the middle.
        finalizer: Called when the proxy is dropped, where SQLAlchemy's own callback is not enough.
        listening: Whether a listener of its connection's events runs.
        lent: Stops the work of a user who has asked for the driver's own connection; None if none has, or
            has all the time in the world.
        nested: Whether its holder was refused a second connection.
        next_search: The moment from which it is worth looking again for the code that keeps it.
        pool: The pool it was taken from.
        proxy: What the user has of it, weakly; None until it is made.
        site: The application's code that asked for it.
        reported: Whether it was reported as forgotten.
        caller: Who ran that.
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
        """True if it is being opened, checked or given back, or listeners have it: work past our hooks."""
        return self.proxy is None or self.checking_in or self.bracket is not None

    def is_of(self, proxy: object) -> bool:
        """True if a connection as its user has it is this checkout's."""
        return self.proxy is not None and self.proxy() is proxy

    def take_back(self) -> bool:
        """Ends the work past our hooks; False if the connection must not be used again."""
        for limit in (self.lent, self.bracket):
            if limit is not None and limit.end():
                self.must_discard = True
        return not self.must_discard

    def surrender(self) -> None:
        """Gives the slots back while the connection is still out: its pool was disposed of."""
        self.disposed = True
        given, self.slots = self.slots, [(gate, 0) for gate, _ in self.slots]
        for gate, slot in given:
            if slot:
                gate.check_in(slot)
