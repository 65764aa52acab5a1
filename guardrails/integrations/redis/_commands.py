"""Runs a client's checkouts and commands through its guard, with deadlines.

Depends on guards and checkouts; must not import connections or pools.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from sys import _getframe
from time import monotonic
from typing import Any
from weakref import ref

import redis

from guardrails._core.outcome import Outcome
from guardrails._dbapi.observing import observe
from guardrails._guard.compartments import forms_compartments
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.checkouts import Checkouts
from guardrails._pool.limits import innermost, time_allowed
from guardrails._runtime.fork import check_process
from guardrails._runtime.pauses import pause_detector
from guardrails._runtime.scope import client_is_gone, current, note_guard_error, touch, waiting_client
from guardrails.errors import CallAbandonedError, GuardrailsError, RejectedError
from guardrails.integrations.redis._checkout import RedisCheckout
from guardrails.integrations.redis._error_classifier import ReplyClassifier
from guardrails.integrations.redis._releases import GRACE, error_of_lock_block, in_giving_back, is_release
from guardrails.integrations.redis._replies import errors_in

__all__ = ["CommandRunner", "prefer_block_error"]

_SUCCESS = Outcome.SUCCESS  # an enum's members are slow to reach in Python 3.11

_CONNECTION_LOST = (redis.TimeoutError, redis.ConnectionError, TimeoutError)

_DEADLINE_TOLERANCE = 0.005
"""Seconds before its deadline at which a read that timed out counts as late: socket timeouts can be early."""


_SINGLE = frozenset({redis.Redis.__init__.__code__, redis.asyncio.Redis.initialize.__code__})
"""The code by which a client with ``single_connection_client`` takes its connection."""


class CommandRunner:
    """Takes slots for the checkouts of one client, and records its work.

    Args:
        guard: The client's guard.
        leak_after: Seconds after which a connection on which nothing runs is reported; None is never.
        is_async: Whether asyncio tasks use the client.
        checkouts: The list of the checkouts, if the client has others; None makes one.

    Attributes:
        checkouts: The checkouts that are out, with their holders and figures.
        created: Called with each connection that was opened, and its socket or stream.
        classifier: Classifies errors.
    """

    def __init__(
        self, guard: Guard, leak_after: float | None, *, is_async: bool, checkouts: Checkouts | None = None
    ) -> None:
        self.created: Callable[[Any, Any], None] | None = None
        self.classifier = ReplyClassifier(guard)
        self._guard = guard
        self.checkouts = checkouts or Checkouts(guard, leak_after, is_async=is_async, system="redis")
        self._clock = self.checkouts.figures.clock
        self._gate: LockedGate = guard.call_settings.gates[-1]
        self._timeout = guard.timeout
        self._is_async = is_async
        self._sorts = forms_compartments(guard)

    # --- slots ---------------------------------------------------------------------------------

    def enter(self) -> RedisCheckout:
        """Takes a slot for a checkout.

        Raises:
            RejectedError: No slot became free in time.
        """
        checkout = self._new_checkout()
        gates = checkout.guard.call_settings.gates
        try:
            for gate in gates:
                checkout.slots.append((gate, gate.check_out(None, budget=checkout.seconds)))
                if checkout.slots[-1][1] < 0 and checkout.leaves_the_model(gates):
                    break
        except BaseException:
            checkout.release_slots()
            raise
        return checkout

    async def enter_async(self) -> RedisCheckout:
        """Takes a slot for a task; see `enter`."""
        checkout = self._new_checkout()
        gates = checkout.guard.call_settings.gates
        try:
            for gate in gates:
                checkout.slots.append((gate, await gate.check_out_async(budget=checkout.seconds)))
                if checkout.slots[-1][1] < 0 and checkout.leaves_the_model(gates):
                    break
        except BaseException:
            checkout.release_slots()
            raise
        return checkout

    def adopt(self) -> RedisCheckout:
        """Returns a checkout for a connection that was out before the guard was attached."""
        checkout = RedisCheckout()
        checkout.guard, checkout.used = self._guard, True
        checkout.slots = [(self._gate, 0)]
        return checkout

    def for_reserve(self) -> RedisCheckout:
        """Returns a checkout without a slot, for a release that the guard has refused."""
        checkout = RedisCheckout()
        checkout.guard, checkout.slots, checkout.from_reserve = self._guard, [], True
        checkout.seconds, checkout.at = GRACE, monotonic() + GRACE
        return checkout

    def hand_out(self, connection: Any, checkout: RedisCheckout) -> None:
        """Notes that the caller of a checkout gets its connection."""
        registry = self.checkouts.registry
        checkout.connection = ref(connection)
        frame = _getframe(2)
        checkout.site, checkout.caller = registry.site(frame), registry.caller()
        if frame.f_code in _SINGLE:
            checkout.single = True
            checkout.hold_on_purpose()
        self.checkouts.add(checkout)
        self.checkouts.figures.handed_out(checkout)

    def not_handed_out(self, error: BaseException) -> None:
        """Notes a caller for whom the pool behind the guard had no connection."""
        if isinstance(error, redis.exceptions.MaxConnectionsError):
            self.checkouts.figures.timed_out()

    def for_upkeep(self) -> RedisCheckout:
        """Returns a checkout without a slot, for the opening or the ping of an idle connection.

        Raises:
            DeadlineSpentError: No time is left of the deadline around it.
        """
        checkout = RedisCheckout()
        checkout.guard, checkout.slots, checkout.proves = self._guard, [(self._gate, 0)], False
        self._set_deadline(checkout)
        return checkout

    def _new_checkout(self) -> RedisCheckout:
        check_process()
        checkout = RedisCheckout()
        checkout.slots = []
        checkout.asked = self._clock()
        scope = current()
        alone = scope is None and not self._sorts  # saves a call: only the client's own guard can apply
        checkout.guard = self._guard if alone else self._compartment()
        if scope is None:
            if self._timeout is not None:
                checkout.seconds = self._timeout
                checkout.at = monotonic() + self._timeout
        else:
            touch(scope, checkout.guard.call_settings)
            if scope.request is not None:
                checkout.request_ref = ref(scope.request)
            self._set_deadline(checkout)
        if not self._gate.core.enforces:
            checkout.at = None
        return checkout

    def _compartment(self) -> Guard:
        """The compartment that the caller's checkout belongs to."""
        return innermost(self._guard)

    @property
    def enforces(self) -> bool:
        """True unless the guard is in shadow or off."""
        return self._gate.core.enforces

    def _set_deadline(self, checkout: RedisCheckout) -> None:
        """Sets the deadline of the next piece of work."""
        scope = current()
        if client_is_gone(scope) and self.enforces and not (in_giving_back() or is_release()):
            waiting_client(scope, checkout.guard.name)
        seconds, checkout.own = time_allowed(checkout.guard)
        if seconds is not None and seconds < GRACE and (in_giving_back() or (seconds <= 0 and is_release())):
            seconds = GRACE
        if seconds is not None and seconds <= 0:
            self._gate.refuse("deadline_spent")
            seconds = None
        checkout.seconds = seconds
        checkout.at = None if seconds is None or not self.enforces else monotonic() + seconds

    # --- evidence ------------------------------------------------------------------------------

    def begin(self, checkout: RedisCheckout) -> None:
        """Begins a piece of work; opening its connection may have begun it already.

        Raises:
            RejectedError: The guard refuses it.
        """
        if checkout.times is not None:
            checkout.started = checkout.times.clock()
        if checkout.tickets:
            return
        if checkout.used:
            if checkout.from_reserve:
                return
            self._set_deadline(checkout)
            try:
                self._readmit(checkout)
            except RejectedError:
                if not is_release():
                    raise
                return
        checkout.used = True
        checkout.tickets = tickets = []
        for gate, slot in checkout.slots:
            tickets.append((gate, gate.begin(slot), slot))
        if not self.enforces:
            gates = checkout.guard.call_settings.gates
            checkout.observation = observe(
                gates, checkout, tickets, checkout.seconds, own=checkout.own, on_loop=self._is_async
            )

    def note_blocking(self, checkout: RedisCheckout, seconds: float) -> None:
        """Marks the work as blocking: its wait is not slow, and it is no probe."""
        checkout.forget_work()
        checkout.blocking = True
        checkout.hold_on_purpose()
        checkout.end_observation()
        if checkout.guard.timeout is None or math.isinf(seconds):
            checkout.at = checkout.seconds = None
        else:
            # A smaller limit could lose an element that the server has already removed from its list.
            checkout.seconds = seconds + checkout.guard.timeout
            checkout.at = monotonic() + checkout.seconds if self.enforces else None
            checkout.own = True

    def extend_for_release(self, checkout: RedisCheckout, commands: list[Sequence[object]]) -> bool:
        """Gives a release at least `GRACE` seconds; returns True if its deadline changed."""
        soonest = monotonic() + GRACE
        if checkout.at is None or checkout.at >= soonest or checkout.from_reserve or not is_release(commands):
            return False
        checkout.at, checkout.seconds = soonest, GRACE
        return True

    def succeed(self, checkout: RedisCheckout, answer: object = None) -> bool:
        """Ends a piece of work that got its reply; True if the connection must be closed.

        That is so if the server no longer takes writes.
        """
        self._count(checkout)
        outcome = self.classifier.outcome_of_replies(answer) if type(answer) is list else _SUCCESS
        if not checkout.proves and outcome is _SUCCESS:
            outcome = Outcome.NEUTRAL
        if checkout.blocking or outcome is not _SUCCESS:
            self._record(checkout, outcome)
            return outcome is Outcome.FAILURE and any(map(self.classifier.must_close, errors_in(answer)))
        tickets, checkout.tickets = checkout.tickets, ()
        for gate, ticket, slot in tickets:
            gate.end(ticket, _SUCCESS, 0, slot)
        return False

    def fail(
        self,
        checkout: RedisCheckout,
        error: BaseException,
        *,
        connecting: bool = False,
        stopped: bool = False,
    ) -> None:
        """Ends a piece of work that raised.

        Args:
            checkout: The checkout of the work.
            error: The error of redis-py.
            connecting: Whether the connection was still being opened.
            stopped: Whether its task was cancelled at the deadline.

        Raises:
            CallTimeoutError: The deadline ended the work, or the client of the request has gone.
        """
        self._count(checkout)
        if stopped or (isinstance(error, _CONNECTION_LOST) and self.is_late(checkout)):
            if stopped and not checkout.blocking and client_is_gone(current()):
                self._record(checkout, Outcome.ABANDONED)
                raise note_guard_error(
                    CallAbandonedError(checkout.guard.name, checkout.seconds or 0.0)
                ) from error
            # A deadline that passed while the process stood still is no evidence.
            ours = checkout.own and not pause_detector.missed(checkout.seconds or 0.0)
            self._record(checkout, Outcome.FAILURE if ours else Outcome.ABANDONED)
            self.classifier.suspect()
            raise self._timed_out(checkout, error)
        self._record(checkout, self.classifier.outcome(error, connecting=connecting))

    def _count(self, checkout: RedisCheckout) -> None:
        """Counts the time of a piece of work, unless it only waits for others to send something."""
        if checkout.observation is not None:
            checkout.end_observation()
        if checkout.times is not None and not checkout.blocking and not checkout.subscriber:
            checkout.times.used(checkout.started)

    def _timed_out(self, checkout: RedisCheckout, cause: BaseException) -> BaseException:
        self._gate.report.note_stopped()
        error = self._gate.errors.timeout(checkout.guard.name, checkout.seconds or 0.0)
        error.__cause__ = cause
        return prefer_block_error(error) or note_guard_error(error)

    def is_late(self, checkout: RedisCheckout) -> bool:
        """Returns True if the deadline of the work has passed."""
        return checkout.at is not None and monotonic() >= checkout.at - _DEADLINE_TOLERANCE

    def _record(self, checkout: RedisCheckout, outcome: Outcome) -> None:
        if checkout.blocking:
            checkout.blocking = False
            if outcome in {_SUCCESS, Outcome.FAILURE}:  # what it says counts, how long it took does not
                checkout.tickets = [(gate, gate.begin(slot), slot) for gate, slot in checkout.slots]
        checkout.end(outcome)

    def _readmit(self, checkout: RedisCheckout) -> None:
        """Admits one more piece of work on a connection that stays out: in a transaction, or for good.

        While the circuit is closed, the checkout keeps its slot. Otherwise the circuit decides again, and the
        new slot may be a probe's. Refused work keeps a slot, because its connection stays out of the pool:
        without it the guard would admit a caller for whom the pool has no connection.
        """
        if self._guard.state in {"closed", "disabled", "metrics_only"} and checkout.slots:
            return
        checkout.release_slots()
        try:
            checkout.take_slots_now(checkout.guard.call_settings.gates)
        except BaseException:
            self._gate.step(self._gate.core.adopt, 1)
            checkout.slots.append((self._gate, 0))
            raise
        if checkout.subscriber or checkout.single:
            checkout.hold_on_purpose()


def prefer_block_error(error: GuardrailsError) -> BaseException | None:
    """Returns the error that ends a ``with lock:`` block, which ours must not replace; None without one."""
    body = error_of_lock_block()
    if body is not None:
        body.add_note(f"Besides, its lock was not released: {error}")
    return body
