"""What each call's loop is held to, between a tenacity object and its strategies. Knows no guards."""

from __future__ import annotations

import inspect
import sys
import time
from typing import Any, TypeVar, cast

import tenacity
from tenacity import AsyncRetrying, BaseRetrying, RetryCallState

from guardrails._retry.budget import RetryBudget
from guardrails._retry.classify import may_retry, no_time_for, pause

__all__ = ["AsyncRules", "PayIn", "Rules", "Shared"]

B = TypeVar("B", bound=BaseRetrying)


class Shared(tenacity.Retrying):
    """A ``Retrying`` that keeps no state of a call, but has a loop made for each."""


class PayIn:
    """A ``before`` hook that notes each call in a budget."""

    def __init__(self, budget: RetryBudget) -> None:
        self.budget = budget

    def __call__(self, state: RetryCallState) -> None:
        if state.attempt_number == 1:
            self.budget.deposit()


def _private(policy: BaseRetrying, kind: type[B]) -> B:
    """A copy of a tenacity object for one call, so that the user's own stays as it was."""
    if isinstance(policy, kind) and not isinstance(policy, Shared):
        return policy.copy()
    copy = kind()
    vars(copy).update({name: value for name, value in vars(policy).items() if name != "_local"})
    return copy


_KNOWN = (tenacity.Retrying, AsyncRetrying)
_ABOUT_ERRORS = (
    tenacity.retry_if_exception,
    tenacity.retry_if_exception_type,
    tenacity.retry_if_not_exception_type,
)
"""What `Rules.go_ahead` knows to do nothing around an attempt that succeeds."""


class Rules:
    """A policy's own strategies for one call, asked only where the rules leave a choice."""

    def __init__(self, policy: BaseRetrying) -> None:
        self._policy: Any = policy
        self._handled = sys.exception()
        self._state: RetryCallState | None = None
        self._began: float | None = None

    def go_ahead(self) -> bool:
        """Whether the first attempt needs no loop: it is ten times the price of a guarded call.

        So it is where nothing of the policy happens before an attempt or after one that succeeds. If the
        attempt fails, the loop is told, and goes on as if it had made it.
        """
        policy = self._policy
        before = policy.before
        if not (
            self._handled is None  # raising the first error again would take its context from it
            and (isinstance(policy, Shared) or type(policy) in _KNOWN)
            and type(policy.retry) in _ABOUT_ERRORS
            and (before is tenacity.before_nothing or type(before) is PayIn)
            and getattr(policy, "enabled", True)
        ):
            return False
        self._began = time.monotonic()
        if type(before) is PayIn:
            before.budget.deposit()
        return True

    def first_attempt(self) -> dict[str, Any]:
        """The statistics, as tenacity has them, of a call that needed no other."""
        return {
            "start_time": self._began,
            "attempt_number": 1,
            "idle_for": 0,
            "delay_since_first_attempt": 0,
        }

    def loop(self) -> tenacity.Retrying:
        loop = self._ruled(_private(self._policy, tenacity.Retrying))
        if not isinstance(self._policy, tenacity.Retrying):
            loop.sleep = tenacity.sleep  # an asynchronous one cannot be awaited here
        return loop

    def retry(self, state: RetryCallState) -> bool:
        return self._allowed(state) and bool(self._policy.retry(state))

    def wait(self, state: RetryCallState) -> float:
        return pause(self._policy.wait(state), self._error_of(state))

    def stop(self, state: RetryCallState) -> bool:
        # The policy last: it may have a budget, which is asked only when all else is ready.
        return (self._must_stop(state) or bool(self._policy.stop(state))) and self._give_up(state)

    def drop_last_error(self) -> None:
        """Forgets the last error, which would keep itself and the locals of the call alive in a circle."""
        if self._state is not None:
            self._state.outcome = None

    def _allowed(self, state: RetryCallState) -> bool:
        error = self._error_of(state)
        return error is None or may_retry(error, self._handled)

    def _must_stop(self, state: RetryCallState) -> bool:
        if no_time_for(state.upcoming_sleep):
            return True
        # tenacity does not ask `retry` about its own TryAgain: what it was raised for decides.
        error = self._error_of(state)
        if not isinstance(error, tenacity.TryAgain):
            return False
        reason = error.__cause__ or error.__context__
        return reason is not None and reason is not self._handled and not may_retry(reason, self._handled)

    def _give_up(self, state: RetryCallState) -> bool:
        # tenacity, too, raises the last error now, but from a frame that keeps it: see `drop_last_error`.
        if self._wants_the_error(state):
            cast("tenacity.Future", state.outcome).result()
        return True

    def _wants_the_error(self, state: RetryCallState) -> bool:
        error, policy = self._error_of(state), self._policy
        if error is None or isinstance(error, tenacity.TryAgain):
            return False  # tenacity knows what those stand for
        return policy.reraise and not policy.retry_error_callback

    def _ruled(self, loop: B) -> B:
        loop.retry, loop.wait, loop.stop = cast("Any", (self.retry, self.wait, self.stop))
        if self._began is not None:
            loop.before = tenacity.before_nothing  # it has been asked already
        return loop

    def _error_of(self, state: RetryCallState) -> BaseException | None:
        self._state = state
        if self._began is not None:
            state.start_time = self._began
        return None if state.outcome is None else state.outcome.exception()


class AsyncRules(Rules):
    """The same, where each strategy may be a coroutine function."""

    def loop(self) -> AsyncRetrying:  # type: ignore[override]
        loop: Any = self._ruled(_private(self._policy, AsyncRetrying))
        if self._policy.sleep is tenacity.sleep:
            loop.sleep = AsyncRetrying().sleep  # time.sleep would stop the event loop
        else:
            loop.sleep = self.sleep
        return cast("AsyncRetrying", loop)

    async def retry(self, state: RetryCallState) -> bool:  # type: ignore[override]
        return self._allowed(state) and bool(await _answer(self._policy.retry(state)))

    async def wait(self, state: RetryCallState) -> float:  # type: ignore[override]
        return pause(await _answer(self._policy.wait(state)), self._error_of(state))

    async def stop(self, state: RetryCallState) -> bool:  # type: ignore[override]
        done = self._must_stop(state) or bool(await _answer(self._policy.stop(state)))
        return done and self._give_up(state)

    async def sleep(self, seconds: float) -> None:
        await _answer(self._policy.sleep(seconds))


async def _answer(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
