"""One connection out of a Redis client's pool. Depends on the slots of a checkout; must not import redis."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

from guardrails._core.outcome import Outcome
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.checkout import Slots

__all__ = ["RedisCheckout", "current_checkout"]


class RedisCheckout(Slots):
    """One connection out of the pool.

    Opening the connection, if needed, and the first command on it are one piece of work with one deadline:
    the caller asked for one thing.

    Attributes:
        guard: The guard that admitted it: the client's own, or a compartment of it.
        tickets: The tickets of the work that runs.
        at: The deadline of the work on `time.monotonic`; None is no deadline.
        seconds: The time that the work was given, in seconds.
        own: Whether ``seconds`` is the guard's own timeout, not the caller's deadline.
        used: Whether a piece of work has begun on it.
        proves: Whether the success of its work is evidence; that of a ping or an UNWATCH is not.
        blocking: Whether the work runs a blocking command.
        subscriber: Whether it belongs to a PubSub, which may be silent for hours.
        from_reserve: Whether its connection comes from the reserve, and not from the pool.
    """

    # Without a constructor: most commands keep the defaults of the class, and a checkout costs one call less.
    guard: Guard
    at: float | None = None
    seconds: float | None = None
    own = proves = True
    tickets: Sequence[tuple[LockedGate, int]] = ()
    used = blocking = subscriber = from_reserve = False

    def end(self, outcome: Outcome) -> None:
        """Ends the tickets of the work that runs."""
        tickets, self.tickets = self.tickets, ()
        self.proves = True
        for gate, ticket in tickets:
            gate.end(ticket, outcome)

    def release_slots(self) -> None:
        """Gives each slot back once; work that has not ended is no evidence."""
        try:
            if self.tickets:
                self.end(Outcome.ABANDONED)
            Slots.release_slots(self)
        except BaseException:  # an interrupt: once more, since no slot is given back twice
            Slots.release_slots(self)
            raise


current_checkout: ContextVar[RedisCheckout | None] = ContextVar("guardrails_redis_checkout", default=None)
"""The checkout that the pool makes now, for the connection that it will choose."""
