"""One connection out of a Redis client's pool. Depends on the slots of a checkout; must not import redis."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

from guardrails._core.outcome import Outcome
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.checkout import Slots

__all__ = ["RedisCheckout", "under_way"]


class RedisCheckout(Slots):
    """One connection out of the pool.

    What is evidence is what the caller asked for: opening the connection, if that is needed, and the
    first command on it are one piece of work with one deadline.

    Attributes:
        guard: The guard it was made through: the client's own, or a compartment of it.
        tickets: The evidence under way.
        at: When the work must be over, on `time.monotonic`; None is never.
        seconds: What it was given.
        own: Whether it is the guard's own timeout that says so.
        used: Whether a piece of work has been done on it.
        proves: Whether the success of its work is evidence; that of a ping or an UNWATCH is none.
        patient: Whether the work waits on the server on purpose.
        subscriber: Whether it belongs to a PubSub, which may be silent for hours.
        extra: Whether its connection is not one of the pool's, but one to give something back with.
    """

    # No constructor: what most commands leave as it is stays with the class, and one frame less each.
    guard: Guard
    at: float | None = None
    seconds: float | None = None
    own = proves = True
    tickets: Sequence[tuple[LockedGate, int]] = ()
    used = patient = subscriber = extra = False

    def end(self, outcome: Outcome) -> None:
        """Ends the evidence under way."""
        tickets, self.tickets = self.tickets, ()
        self.proves = True
        for gate, ticket in tickets:
            gate.end(ticket, outcome)

    def give_back(self) -> None:
        """Gives the slots back, each once; work that was begun and not ended is no evidence."""
        if self.tickets:
            self.end(Outcome.ABANDONED)
        super().give_back()


under_way: ContextVar[RedisCheckout | None] = ContextVar("guardrails_redis_checkout", default=None)
"""The checkout a pool is just making, for the connection it will choose."""
