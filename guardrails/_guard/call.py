"""One call through a guard, from admission to release. Depends on gates; must not import guards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import TracebackType
from typing import Any, Self, TypeVar

from guardrails._core.outcome import Outcome
from guardrails._guard.call_settings import CallSettings
from guardrails._guard.fast_path import FastCall
from guardrails._guard.locked_gate import LockedGate
from guardrails._runtime.outcomes import classify
from guardrails._runtime.pauses import pause_detector
from guardrails._runtime.scope import (
    Client,
    Scope,
    ambient,
    client_is_gone,
    enter,
    note_guard_error,
    time_left,
    waiting_client,
    would_not_run,
)
from guardrails._runtime.task_timeout import lines_of
from guardrails._runtime.timeouts import budget_of, set_deadline
from guardrails._runtime.unentered import check_entered
from guardrails._util.callables import FINISHED, check_finished
from guardrails.errors import CallAbandonedError, CallTimeoutError

__all__ = ["Call", "run_async"]

T = TypeVar("T")

# Looked up once: an enum's members are slow to reach in Python 3.11.
_SUCCESS, _FAILURE, _ABANDONED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED
_get_ambient = ambient.get


class Call(FastCall):
    """One call through a guard, used once. It is the scope of its deadline and the deadline's timer, too.

    A call takes the fast path if it meets free slots and closed circuits only, and if its end cannot change a
    circuit's state. All others take the slow path.
    """

    __slots__ = ()

    @classmethod
    def waiting(cls, call_settings: CallSettings, timeout: float | None) -> Self:
        """Makes a call that a ``with`` block begins."""
        call = cls()
        call.call_settings, call.timeout = call_settings, timeout
        call.at = call.outer = call.request = None
        call.closed, call.armed = True, False  # not a scope yet
        return call

    def remaining(self) -> float | None:
        """Seconds until the deadline of this call, 0.0 if it has passed, None without one."""
        if client_is_gone(self):
            return 0.0
        left = time_left(self)
        return None if left is None else max(0.0, left)

    # --- threads and tasks: they differ in the wait and in the timer ---------------------------

    def __enter__(self) -> Self:
        self._check_new()
        if not self.try_enter_fast(self.call_settings, self.timeout):
            self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.closed:
            return
        inner: Scope | None = self
        try:
            inner = _get_ambient()
            if error is not None or not self.try_exit_fast(_SUCCESS):
                self.leave(error)
        finally:
            if not self.closed:
                self.abandon()
        if inner is not self and (self.at is not None or self.call_settings.attached):
            check_entered(self, inner)

    async def __aenter__(self) -> Self:
        self._check_new()
        if not self.try_enter_fast(self.call_settings, self.timeout):
            await self.enter_async()
        if self.at is not None and not self.call_settings.attached:
            self.arm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.closed:
            return
        try:
            if error is not None or not self.try_exit_fast(_SUCCESS):
                self.leave_async(error)
        finally:
            if not self.closed:
                self.abandon()

    def _check_new(self) -> None:
        if hasattr(self, "owner"):
            raise RuntimeError("a call is used once; ask the guard for another")

    def on_arm_failed(self) -> None:
        """See TaskTimeout: a call without its timer does not start."""
        self.abandon()

    # --- the slow path -------------------------------------------------------------------------

    def enter(self) -> None:
        """Takes the slots that the fast path did not get, and waits for them if necessary.

        Raises:
            RejectedError: The call may not start.
        """
        try:
            budget = self._check_budget()
            for index, gate in self._gates():
                self.tickets[index] = gate.let_pass() if self.left_model else gate.enter(budget=budget)
                if self.tickets[index] < 0:
                    self._run_outside(index, gate)
            self._open()
        except BaseException:
            self.abandon()
            raise

    async def enter_async(self) -> None:
        """Takes the slots for an asyncio task; see `enter`."""
        try:
            budget = self._check_budget()
            for index, gate in self._gates():
                self.tickets[index] = (
                    gate.let_pass() if self.left_model else await gate.enter_async(budget=budget)
                )
                if self.tickets[index] < 0:
                    self._run_outside(index, gate)
            self._open()
        except BaseException:
            self.abandon()
            raise

    def leave(self, error: BaseException | None, outcome: Outcome = _SUCCESS) -> None:
        """Ends the call and records its outcome. A second time it does nothing.

        Args:
            error: The exception that the call raised; None if it returned.
            outcome: The outcome of its result, if it returned one.
        """
        if self.closed:
            return
        result, outcome = outcome, _ABANDONED  # if the user's rule or clock raises
        try:
            if error is not None:
                result = classify(error, self.call_settings.is_failure)
                if result is _FAILURE:
                    self.call_settings.note_error(error)
            if (
                result is _SUCCESS
                and self.at is not None
                and self.owner is self.guard
                and self.clock() > self.at
            ):
                result = _FAILURE  # a synchronous call that returned after its deadline
            outcome = result
            self.release(outcome)
        except BaseException:  # Ctrl-C, too: the slot must be released
            self.release(outcome)
            raise

    def leave_async(self, error: BaseException | None, outcome: Outcome = _SUCCESS) -> None:
        """Ends an asyncio task's call.

        Raises:
            CallTimeoutError: The task was cancelled by this call's own timer.
        """
        if not self.armed or not self.disarm(error):
            self.leave(error, outcome)
            return
        # Only the guard's own timeout is evidence about the dependency.
        own = self.owner is self.guard
        if self.abandoned:
            self.release(_ABANDONED)
            raise note_guard_error(
                CallAbandonedError(self.call_settings.name, self.timeout or 0.0)
            ) from error
        missed = self.timeout is not None and pause_detector.missed(self.timeout)
        self.release(_FAILURE if own and not missed else _ABANDONED)
        given = self.timeout if own and self.timeout is not None else self.given
        self.call_settings.gates[-1].report.note_stopped()
        raise note_guard_error(CallTimeoutError(self.call_settings.name, given)) from error

    def _check_budget(self) -> float | None:
        self.at, self.owner = None, self.guard  # resets what the fast path has set
        self._check_client()
        budget = None if self.outer is None else budget_of(self)
        if budget is not None and budget <= 0:
            self._reject_as_spent()
            return None
        return budget

    def _check_client(self) -> None:
        if self.outer is not None and self.call_settings.root.core.enforces:
            waiting_client(self.outer, self.call_settings.name)

    def _reject_as_spent(self) -> None:
        gate = self.call_settings.gates[0]
        gate.refuse("deadline_spent")
        if gate.core.mode == "shadow":
            self._end_in_model(_ABANDONED)

    def _gates(self) -> list[tuple[int, LockedGate]]:
        """The gates at which the call has no ticket yet, each with its index."""
        call_settings = self.call_settings
        if not self.tickets:
            self.tickets = [*call_settings.no_tickets]
        if not call_settings.attached:
            return [each for each in enumerate(call_settings.gates) if not self.tickets[each[0]]]
        for gate in call_settings.gates:
            refusal = None if self.left_model else gate.preview()
            if refusal is not None:
                if gate.core.enforces:
                    raise gate.refusal_error(refusal)
                self._end_in_model(_ABANDONED)
        return []

    def _open(self) -> None:
        now, core = self.clock(), self.call_settings.gates[0].core
        if core.mode == "off":
            return
        self._check_client()  # it may have left while the call waited
        if core.enforces:
            # The wait at the parent's gate must not make the dependency look slow.
            for gate, ticket in zip(self.call_settings.gates[:-1], self.tickets, strict=False):
                if ticket:
                    gate.step(gate.core.restart, ticket)
        set_deadline(self, now)
        if (
            not self.call_settings.attached
            and self.owner is not self.guard
            and self.at is not None
            and self.at <= now
            and not self.left_model
        ):
            self._reject_as_spent()  # it passed while the call waited
        enter(self)

    # --- in shadow -----------------------------------------------------------------------------

    def _run_outside(self, index: int, gate: LockedGate) -> None:
        """Notes that a gate has let the call in without a slot. In shadow it may not have run."""
        if gate.core.mode == "shadow" and not self.left_model:
            outside, number = gate.core.outside, self.tickets[index]
            waiting = outside.get(number)
            if waiting is not None and not waiting.inner:
                waiting.owner = self
            if (
                outside.get(number) is None
            ):  # looked up again: another thread may have ended the wait meanwhile
                self._end_in_model(_ABANDONED)

    def leave_model(self) -> None:
        """See ModelledCall."""
        if not self.closed and not self.left_model:
            self._end_in_model(_ABANDONED, refused=True)

    def _end_in_model(self, outcome: Outcome, *, refused: bool = False) -> None:
        """Ends the call in the model, while the real one continues."""
        self.__class__ = CallOutsideModel  # of the same layout
        for gate, ticket in zip(self.call_settings.gates, self.tickets or [self.ticket], strict=False):
            if ticket:
                gate.step(gate.core.end_in_model, ticket, outcome, refused=refused)

    def is_for(self, clients: AbstractSet[Client]) -> bool:
        """See Timer. Only an enforcing guard cancels the task."""
        return super().is_for(clients) and bool(self.call_settings.gates[0].core.enforces)

    def fire(self) -> float | None:
        """See Timer. Only an enforcing guard cancels the task."""
        core = self.call_settings.gates[0].core
        if core.enforces:
            self.fired = True
            self._task.cancel()
        elif core.mode == "shadow" and not self.left_model and not would_not_run(self.outer, core):
            return self._note_would_stop()
        return None

    def _note_would_stop(self) -> float | None:
        """Notes that the deadline has passed; returns when to look again if it would have begun later."""
        own, gates = self.owner is self.guard, self.call_settings.gates
        for gate, ticket in zip(gates, self.tickets or [self.ticket], strict=False):
            gate.step(gate.core.advance_model)
            if ticket < 0:
                late = gate.core.lateness(ticket)
                if late is None:
                    self._end_in_model(_ABANDONED)
                    return None
                if own and late and self.timed_task:
                    self.timed_task = 0  # once: from its slot in the model on it has all its time
                    return float(self.due + late)
        given = self.timeout if own and self.timeout is not None else self.given
        missed = own and pause_detector.missed(given)
        self._end_in_model(_FAILURE if own and not missed else _ABANDONED)
        for gate in gates:
            gate.step(gate.core.count_would_stop)
        gates[0].note_would_stop(self, given, lines_of(self._task), self.request)
        return None

    # --- the end -------------------------------------------------------------------------------

    def release(self, outcome: Outcome) -> None:
        """Releases slots and tickets. If it is interrupted, it can be repeated: each is released once."""
        gates, tickets = self.call_settings.gates, self.tickets
        try:
            if self.ticket:
                gates[0].end(self.ticket, outcome, 1)
                self.ticket = 0
            for index in reversed(range(len(tickets))) if tickets else ():
                if tickets[index]:
                    gates[index].end(tickets[index], outcome, 1)
                    tickets[index] = 0
        finally:
            self.closed = True
            if self.outer is not None or self.call_settings.attached:
                self.step_out()


class CallOutsideModel(Call):
    """A call in shadow that enforcing would have refused, or stopped by now. Nothing inside it would run."""

    __slots__ = ()

    left_model = True

    def release(self, outcome: Outcome) -> None:
        """See Call."""
        super().release(outcome)
        self.call_settings.gates[0].report.sums.ended(self)


async def run_async(
    call_settings: CallSettings,
    timeout: float | None,  # noqa: ASYNC109 - handed on
    fn: Callable[..., Awaitable[T]],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> T:
    """Awaits ``fn`` in one call and returns what it returns.

    Args:
        call_settings: The settings of the guard.
        timeout: Seconds for the call; None is unbounded.
        fn: Returns an awaitable.
        args: Positional arguments of ``fn``.
        kwargs: Keyword arguments of ``fn``.
    """
    call = Call()
    if not call.try_enter_fast(call_settings, timeout):
        await call.enter_async()
    if call.at is not None and not call_settings.attached:
        call.arm()
    try:
        result = await fn(*args, **kwargs)
        if type(result) not in FINISHED:
            check_finished(fn, result, "await it inside the function")
        outcome = call_settings.judge(result) if call_settings.judges else _SUCCESS
        if not call.try_exit_fast(outcome):
            call.leave_async(None, outcome)
    except BaseException as error:
        try:
            call.leave_async(error)
        except BaseException:
            call.abandon()
            raise
        raise
    return result
