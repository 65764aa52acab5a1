"""One passage through a guard, from admission to release. Knows doors and deadlines, not what is called."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from guardrails._alarm import Alarm, alarms
from guardrails._deadline import Scope, close, current, note_trouble, open_scope
from guardrails._door import Door
from guardrails._outcome import Outcome, classify, classify_result
from guardrails._policy import BreakerPolicy
from guardrails.errors import CallTimeoutError

__all__ = ["Call", "Passage", "not_run"]


class Passage:
    """What all calls through one guard have in common.

    Attributes:
        owner: The guard, as scopes know it.
        name: Its name.
        doors: The doors to pass, the innermost compartment's first.
        policy: What says which ends are failures.
        attached: Whether a pool's checkouts take the slots, so that a call only opens a scope.
    """

    __slots__ = ("attached", "doors", "name", "owner", "policy")

    def __init__(
        self, owner: object, name: str, doors: tuple[Door, ...], policy: BreakerPolicy | None
    ) -> None:
        self.owner = owner
        self.name = name
        self.doors = doors
        self.policy = policy
        self.attached = False


class Call:
    """One passage through a guard; made by `Guard.call`, used once."""

    __slots__ = ("_alarm", "_held", "_judged", "_passage", "_scope", "_timeout")

    def __init__(self, passage: Passage, timeout: float | None) -> None:
        self._passage = passage
        self._timeout = timeout
        self._held: list[tuple[Door, int]] = []
        self._scope: Scope | None = None
        self._judged: Outcome | None = None
        self._alarm: _CancelAt | None = None

    def remaining(self) -> float | None:
        """Seconds this call has left, 0.0 when time is up, None when it is unbounded."""
        left = None if self._scope is None else self._scope.remaining()
        return None if left is None else max(0.0, left)

    def judge(self, result: object) -> None:
        """Applies the policy's ``is_failure_result`` to what the call is about to return."""
        policy = self._passage.policy
        if policy is not None and policy.is_failure_result is not None:
            self._judged = classify_result(result, policy.is_failure_result)

    # --- the two flavours differ in the wait and in the alarm, in nothing else -----------------

    def __enter__(self) -> Self:
        outer, budget = self._check_budget()
        try:
            for door in self._doors():
                self._held.append((door, door.enter(budget=budget)))
            self._start(outer)
        except BaseException:
            self._settle(Outcome.ABANDONED)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = Outcome.ABANDONED
        try:
            outcome = self._outcome(error)
        finally:  # whatever the user's rules and clock do, the slot goes back
            self._settle(outcome)

    async def __aenter__(self) -> Self:
        outer, budget = self._check_budget()
        try:
            for door in self._doors():
                self._held.append((door, await door.enter_async(budget=budget)))
            self._start(outer)
            self._set_alarm()
        except BaseException:
            self._settle(Outcome.ABANDONED)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        alarm = self._alarm
        if alarm is None or not alarm.silence(error):
            self.__exit__(kind, error, trace)
            return
        # Only a deadline this guard set itself says anything about the dependency.
        own = self._scope is not None and self._scope.owner is self._passage.owner
        self._settle(Outcome.FAILURE if own else Outcome.ABANDONED)
        given = self._timeout if own and self._timeout is not None else alarm.delay
        late = CallTimeoutError(self._passage.name, given)
        note_trouble(late)
        raise late from error

    def _check_budget(self) -> tuple[Scope | None, float | None]:
        if self._scope is not None or self._held:
            raise RuntimeError("a call is used once; ask the guard for another")
        outer = current()
        budget = None if outer is None else outer.remaining()
        if budget is not None and budget <= 0:
            raise self._passage.doors[0].refuse("deadline_spent")
        return outer, budget

    def _doors(self) -> tuple[Door, ...]:
        doors = self._passage.doors
        if not self._passage.attached:
            return doors
        for door in doors:
            refusal = door.step(door.gate.preview)
            if refusal is not None:
                raise door.refused(refusal)
        return ()

    def _start(self, outer: Scope | None) -> None:
        clock = self._passage.doors[0].clock
        now = clock()
        # Waiting at the parent's door is not the dependency's slowness.
        for door, ticket in self._held[:-1]:
            door.step(door.gate.restart, ticket)
        owner = self._passage.owner
        at = None if self._timeout is None else now + self._timeout
        self._scope = scope = open_scope(at, owner, clock, outer)
        if scope.owner is not owner and scope.at is not None and scope.at <= now and self._held:
            raise self._passage.doors[0].refuse("deadline_spent")  # it passed while the call queued

    def _set_alarm(self) -> None:
        scope = self._scope
        if scope is None or scope.at is None or not self._held:
            return
        if scope.alarmed and scope.alarmed == id(asyncio.current_task()):
            return  # an enclosing call's own alarm rings in this task at that moment
        self._alarm = alarm = _CancelAt(scope.remaining() or 0.0)
        scope.alarmed = alarm.task_id

    def _outcome(self, error: BaseException | None) -> Outcome:
        policy = self._passage.policy
        if error is None and self._judged is not None:
            outcome = self._judged
        else:
            outcome = classify(error, None if policy is None else policy.is_failure)
        scope = self._scope
        if outcome is Outcome.SUCCESS and scope is not None and scope.owner is self._passage.owner:
            left = scope.remaining()
            if left is not None and left < 0:
                return Outcome.FAILURE  # a synchronous call that came back after its deadline
        return outcome

    def _settle(self, outcome: Outcome) -> None:
        if self._scope is not None:
            close(self._scope)
        while self._held:
            door, ticket = self._held.pop()
            try:
                door.leave(ticket, outcome)
            except BaseException:  # Ctrl-C while a listener runs: the other doors' slots go back too
                self._settle(outcome)
                raise


def not_run(fn: object, coroutine: Any, advice: str) -> TypeError:
    """The error for a synchronous call that gave a coroutine: guarded in name, and never in fact."""
    coroutine.close()
    name = getattr(fn, "__qualname__", type(fn).__name__)
    return TypeError(f"{name} returned a coroutine, which would run outside the guard: {advice}")


class _CancelAt(Alarm):
    """Cancels the task it was made in when time is up, and knows its own cancellation again."""

    __slots__ = ("_before", "_rung", "_task", "delay", "task_id")

    def __init__(self, delay: float) -> None:
        super().__init__()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a guarded call must run inside an asyncio task")
        self._task = task
        self._before = task.cancelling()
        self._rung = False
        self.task_id = id(task)
        self.delay = max(0.0, delay)
        alarms().arm(self, self.delay)

    def ring(self) -> None:
        """See Alarm."""
        self._rung = True
        self._task.cancel()

    def silence(self, error: BaseException | None) -> bool:
        """Disarms, and says whether ``error`` is this alarm's own cancellation.

        A cancellation from outside in the same tick wins. A body that swallowed ours is still late.
        """
        if not self._rung:
            alarms().disarm(self)
            return False
        ours = self._task.uncancel() <= self._before
        return ours and (error is None or isinstance(error, asyncio.CancelledError))
