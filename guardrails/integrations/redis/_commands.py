"""What a client asks of its server, made evidence and given a deadline. Knows no sockets and no pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import monotonic

import redis

from guardrails._core.outcome import Outcome
from guardrails._guard.guard import Guard, sorts_calls
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.limits import innermost, time_allowed
from guardrails._runtime.classify import classify
from guardrails._runtime.fork import check_process
from guardrails._runtime.pauses import pause_detector
from guardrails._runtime.scope import current, note_guard_error, touch
from guardrails.errors import GuardrailsError, RejectedError
from guardrails.integrations.redis._checkout import RedisCheckout
from guardrails.integrations.redis._releases import GRACE, error_of_block, gives_back, is_marked
from guardrails.integrations.redis._replies import server_failed

__all__ = ["CommandRunner", "instead_of"]

_SUCCESS = Outcome.SUCCESS  # an enum's members are slow to reach in Python 3.11

_LOST = (redis.TimeoutError, redis.ConnectionError, TimeoutError)
_NEVER_SENT = (redis.DataError, ArithmeticError, TypeError, ValueError)

_CLOSE_ENOUGH = 0.005
"""Seconds: a read gives up a little before its deadline as often as a little after."""


class CommandRunner:
    """Runs checkouts and pieces of work for one client.

    Args:
        guard: The client's guard.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._gate: LockedGate = guard.call_settings.gates[-1]
        self._timeout = guard.timeout
        self._sorts = sorts_calls(guard)

    # --- slots ---------------------------------------------------------------------------------

    def enter(self) -> RedisCheckout:
        """Takes a slot for a checkout.

        Raises:
            RejectedError: There is none in time.
        """
        checkout = self._admissible()
        try:
            for gate in checkout.guard.call_settings.gates:
                checkout.slots.append((gate, gate.check_out(None, budget=checkout.seconds)))
        except BaseException:
            checkout.give_back()
            raise
        return checkout

    async def enter_async(self) -> RedisCheckout:
        """Takes a slot for a task; see ``enter``."""
        checkout = self._admissible()
        try:
            for gate in checkout.guard.call_settings.gates:
                checkout.slots.append((gate, await gate.check_out_async(budget=checkout.seconds)))
        except BaseException:
            checkout.give_back()
            raise
        return checkout

    def adopt(self) -> RedisCheckout:
        """A checkout that was made before the guard was there."""
        checkout = RedisCheckout()
        checkout.guard = self._guard
        checkout.slots = [(self._gate, 0)]
        checkout.used = True
        return checkout

    def extra(self) -> RedisCheckout:
        """A checkout without a slot, for a call that gives something back and that the guard has refused."""
        checkout = RedisCheckout()
        checkout.guard = self._guard
        checkout.slots = []
        checkout.extra = True
        checkout.seconds = GRACE
        checkout.at = monotonic() + GRACE
        return checkout

    def _admissible(self) -> RedisCheckout:
        check_process()
        checkout = RedisCheckout()
        checkout.slots = []
        scope = current()
        alone = scope is None and not self._sorts  # then it can only be the client's own: a frame less
        checkout.guard = self._guard if alone else innermost(self._guard)
        if scope is None:
            if self._timeout is not None:
                checkout.seconds = self._timeout
                checkout.at = monotonic() + self._timeout
        else:
            touch(scope, checkout.guard.call_settings)
            self._allow(checkout)
        return checkout

    def _allow(self, checkout: RedisCheckout) -> None:
        """Looks up how long the next piece of work may take."""
        seconds, checkout.own = time_allowed(checkout.guard)
        if seconds is not None and seconds < GRACE and (is_marked() or (seconds <= 0 and gives_back())):
            seconds = GRACE
        if seconds is not None and seconds <= 0:
            raise self._gate.refuse("deadline_spent")
        checkout.seconds = seconds
        checkout.at = None if seconds is None else monotonic() + seconds

    # --- evidence ------------------------------------------------------------------------------

    def begin(self, checkout: RedisCheckout) -> None:
        """Starts a piece of work, or goes on with the one that opening the connection began.

        Raises:
            RejectedError: It may not start.
        """
        if checkout.tickets:
            return
        if checkout.used:
            if checkout.extra:
                return
            self._allow(checkout)
            try:
                self._renew(checkout)
            except RejectedError:
                if not gives_back():
                    raise
                return
        checkout.used = True
        checkout.tickets = tickets = []
        for gate, slot in checkout.slots:
            tickets.append((gate, gate.begin(slot)))

    def wait_patiently(self, checkout: RedisCheckout, seconds: float) -> None:
        """Notes that the work waits on the server on purpose, which is neither slow nor a probe."""
        checkout.end(Outcome.ABANDONED)
        checkout.patient = True
        if checkout.guard.timeout is None or math.isinf(seconds):
            checkout.at = checkout.seconds = None
        else:
            # Once the server has answered, it may hand an element over: no smaller limit may lose that.
            checkout.seconds = seconds + checkout.guard.timeout
            checkout.at = monotonic() + checkout.seconds
            checkout.own = True

    def prolong(self, checkout: RedisCheckout, commands: list[Sequence[object]]) -> bool:
        """Gives work a little time of its own if it only gives something back; whether it needed that."""
        soonest = monotonic() + GRACE
        if checkout.at is None or checkout.at >= soonest or checkout.extra or not gives_back(commands):
            return False
        checkout.at, checkout.seconds = soonest, GRACE
        return True

    def succeed(self, checkout: RedisCheckout, answer: object = None) -> None:
        """Ends a piece of work that got its answer."""
        outcome = self._judge_replies(answer) if type(answer) is list else _SUCCESS
        if not checkout.proves and outcome is _SUCCESS:
            outcome = Outcome.NEUTRAL
        if checkout.patient or outcome is not _SUCCESS:
            self._learn(checkout, outcome)
            return
        tickets, checkout.tickets = checkout.tickets, ()
        for gate, ticket in tickets:
            gate.end(ticket, _SUCCESS)

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
            checkout: Whose work it was.
            error: What it raised.
            connecting: Whether there is no connection for it.
            stopped: Whether its task was cancelled at the deadline.

        Raises:
            CallTimeoutError: It was the deadline that ended it.
        """
        if stopped or (isinstance(error, _LOST) and self.is_late(checkout)):
            # A deadline that passed while the process stood still is no evidence.
            ours = checkout.own and not pause_detector.missed(checkout.seconds or 0.0)
            self._learn(checkout, Outcome.FAILURE if ours else Outcome.ABANDONED)
            raise self._timed_out(checkout, error)
        self._learn(checkout, self._judge(error, connecting=connecting))

    def _timed_out(self, checkout: RedisCheckout, cause: BaseException) -> BaseException:
        self._gate.report.note_stopped()
        error = self._gate.errors.timeout(checkout.guard.name, checkout.seconds or 0.0)
        error.__cause__ = cause
        return instead_of(error) or note_guard_error(error)

    def is_late(self, checkout: RedisCheckout) -> bool:
        """Whether the work's time is up."""
        return checkout.at is not None and monotonic() >= checkout.at - _CLOSE_ENOUGH

    def _learn(self, checkout: RedisCheckout, outcome: Outcome) -> None:
        if checkout.patient:
            checkout.patient = False
            if outcome in {_SUCCESS, Outcome.FAILURE}:  # what it says counts, how long it took does not
                checkout.tickets = [(gate, gate.begin(slot)) for gate, slot in checkout.slots]
        checkout.end(outcome)

    def _renew(self, checkout: RedisCheckout) -> None:
        """Admits one more piece of work on a connection that is kept: in a transaction, or for good.

        While the circuit is closed the slot it has is as good as any. Otherwise it may be no time for
        work, or the slot may have to be a probe's. Refused work keeps a slot, because its connection stays
        out of the pool: without one, a caller would be admitted for whom the pool has no connection.
        """
        if self._guard.state in {"closed", "disabled", "metrics_only"} and checkout.slots:
            return
        checkout.give_back()
        try:
            for gate in checkout.guard.call_settings.gates:
                checkout.slots.append((gate, gate.check_out_now()))
        except BaseException:
            checkout.give_back()
            self._gate.step(self._gate.core.adopt, 1)
            checkout.slots.append((self._gate, 0))
            raise

    def _judge_replies(self, replies: list[object]) -> Outcome:
        """Looks for errors among replies: ``execute(raise_on_error=False)`` hands them out like any other."""
        if any(issubclass(kind, Exception) for kind in set(map(type, replies))):  # without a step for each
            for reply in replies:
                if isinstance(reply, Exception) and self._judge(reply, connecting=False) is not _SUCCESS:
                    return Outcome.FAILURE
        return _SUCCESS

    def _judge(self, error: BaseException, *, connecting: bool) -> Outcome:
        policy = self._guard.call_settings.policy
        outcome = classify(error, None if policy is None else policy.is_failure)
        if outcome is not Outcome.FAILURE or (policy is not None and policy.is_failure is not None):
            return outcome
        answer = Outcome.ABANDONED if isinstance(error, _NEVER_SENT) else _SUCCESS
        return Outcome.FAILURE if server_failed(error, connecting=connecting) else answer


def instead_of(error: GuardrailsError) -> BaseException | None:
    """The error that a ``with lock:`` block is being left with, which ours must not replace; or None."""
    body = error_of_block()
    if body is not None:
        body.add_note(f"Besides, its lock was not released: {error}")
    return body
