"""One connection out of a Redis client's pool. Depends on the slots of a checkout; must not import redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar

from guardrails._core.outcome import Outcome
from guardrails._dbapi.observing import Observation
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.checkout import HeldCheckout
from guardrails._pool.frames import Caller, Site
from guardrails._pool.route_times import RouteTimes
from guardrails._runtime.scope import RequestScope

__all__ = ["RedisCheckout", "current_checkout"]


class RedisCheckout(HeldCheckout):
    """One connection out of the pool.

    Opening the connection, if needed, and the first command on it are one piece of work with one deadline:
    the caller asked for one thing.

    Attributes:
        connection: Weak reference to the connection; None while the pool chooses it.
        tickets: The tickets of the work that runs.
        at: The deadline of the work on `time.monotonic`; None is no deadline.
        seconds: The time that the work was given, in seconds.
        own: Whether ``seconds`` is the guard's own timeout, not the caller's deadline.
        used: Whether a piece of work has begun on it.
        proves: Whether the success of its work is evidence; that of a ping or an UNWATCH is not.
        blocking: Whether the work runs a blocking command.
        subscriber: Whether it belongs to a PubSub, which may be silent for hours.
        single: Whether a client with ``single_connection_client`` keeps its connection.
        from_reserve: Whether its connection comes from the reserve, and not from the pool.
        observation: In shadow, the limit of the work that runs.
        started: When the work that runs began, on the guard's clock.
    """

    # Without a constructor: most commands keep the defaults of the class, and a checkout costs one call less.
    guard: Guard
    site: Site = ()
    caller: Caller = 0
    request_ref: Callable[[], RequestScope | None] | None = None
    route_name: str | None = None
    times: RouteTimes | None = None
    disposed = nested = reported = in_request_thread = False
    next_search = started = 0.0
    connection: Callable[[], object] | None = None
    observation: Observation | None = None
    at: float | None = None
    seconds: float | None = None
    own = proves = True
    tickets: Sequence[tuple[LockedGate, int, int]] = ()
    used = blocking = subscriber = single = from_reserve = False

    @property
    def busy(self) -> bool:
        """See HeldCheckout. One that is held on purpose is always busy: it was not forgotten."""
        return bool(self.tickets) or self.held_on_purpose or self.connection is None

    @property
    def held_on_purpose(self) -> bool:
        """See HeldCheckout."""
        return self.blocking or self.subscriber or (self.single and not self.tickets)

    def held_object(self) -> object:
        """See HeldCheckout."""
        return None if self.connection is None else self.connection()

    def subscribe(self) -> None:
        """Notes that it is a subscriber's from now on."""
        self.subscriber = True
        self.proves = False
        self.hold_on_purpose()

    def hold_on_purpose(self) -> None:
        """Leaves it out of the age of the oldest checkout: it may be out for hours."""
        for gate, slot in self.slots:
            gate.step(gate.core.hold_on_purpose, slot)

    def end_observation(self) -> None:
        """Ends the limit of the work in shadow, if it has one."""
        observation, self.observation = self.observation, None
        if observation is not None:
            observation.end()

    def end(self, outcome: Outcome) -> None:
        """Ends the tickets of the work that runs."""
        tickets, self.tickets = self.tickets, ()
        self.proves = True
        for gate, ticket, slot in tickets:
            gate.end(ticket, outcome, 0, slot)

    def forget_work(self) -> None:
        """Ends the tickets of the work that runs, without a result: the statements before it keep theirs."""
        tickets, self.tickets = self.tickets, ()
        self.proves = True
        for gate, ticket, _ in tickets:
            gate.end(ticket, Outcome.ABANDONED)

    def release_slots(self) -> None:
        """Releases each slot once; work that has not ended is no evidence."""
        try:
            if self.tickets:
                self.end(Outcome.ABANDONED)
            if self.observation is not None:
                self.end_observation()
            HeldCheckout.release_slots(self)
        except BaseException:  # an interrupt: once more, since no slot is released twice
            HeldCheckout.release_slots(self)
            raise


current_checkout: ContextVar[RedisCheckout | None] = ContextVar("guardrails_redis_checkout", default=None)
"""The checkout that the pool makes now, for the connection that it will choose."""
