"""Applies the retry rules between a tenacity loop and the user's strategies. Must not import guards."""

from __future__ import annotations

import inspect
import sys
import time
from typing import Any, TypeVar, cast

import tenacity
from tenacity import AsyncRetrying, BaseRetrying, RetryCallState

from guardrails._retry.budget import RetryBudget
from guardrails._retry.retryable import exceeds_deadline, may_retry, pause_before_retry

__all__ = ["AsyncRules", "DepositHook", "Rules", "SharedRetrying"]

B = TypeVar("B", bound=BaseRetrying)


class SharedRetrying(tenacity.Retrying):
    """A ``Retrying`` without state of a call: each call makes its own loop."""


class DepositHook:
    """A ``before`` hook that deposits each call in a budget."""

    def __init__(self, budget: RetryBudget) -> None:
        self.budget = budget

    def __call__(self, state: RetryCallState) -> None:
        if state.attempt_number == 1:
            self.budget.deposit()


def _copy_for_call(policy: BaseRetrying, kind: type[B]) -> B:
    """Copies a tenacity object for one call, so that the user's object is not changed."""
    if isinstance(policy, kind) and not isinstance(policy, SharedRetrying):
        return policy.copy()
    copy = kind()
    vars(copy).update({name: value for name, value in vars(policy).items() if name != "_local"})
    return copy


_PLAIN_CLASSES = (tenacity.Retrying, AsyncRetrying)
_RETRY_ON_ERROR = (
    tenacity.retry_if_exception,
    tenacity.retry_if_exception_type,
    tenacity.retry_if_not_exception_type,
)
"""Strategies that do nothing after a successful attempt; see `Rules.try_without_loop`."""


class Rules:
    """The strategies of one call: the user's decide only where the library's rules permit a retry."""

    def __init__(self, policy: BaseRetrying) -> None:
        self._policy: Any = policy
        self._handled = sys.exception()
        self._state: RetryCallState | None = None
        self._began: float | None = None

    def try_without_loop(self) -> bool:
        """Prepares a first attempt without a loop; False if it needs one. A loop costs ten guarded calls.

        It is possible if no hook or strategy acts before an attempt or after a successful one. If the attempt
        fails, the caller replays its error to the loop, which then continues as if it had made the attempt.
        """
        policy = self._policy
        before = policy.before
        if not (
            self._handled is None  # otherwise the replayed error would lose its context
            and (isinstance(policy, SharedRetrying) or type(policy) in _PLAIN_CLASSES)
            and type(policy.retry) in _RETRY_ON_ERROR
            and (before is tenacity.before_nothing or type(before) is DepositHook)
            and getattr(policy, "enabled", True)
        ):
            return False
        self._began = time.monotonic()
        if type(before) is DepositHook:
            before.budget.deposit()
        return True

    def first_attempt_statistics(self) -> dict[str, Any]:
        """The statistics that tenacity would give for a call that needed one attempt."""
        return {
            "start_time": self._began,
            "attempt_number": 1,
            "idle_for": 0,
            "delay_since_first_attempt": 0,
        }

    def loop(self) -> tenacity.Retrying:
        loop = self._apply_rules(_copy_for_call(self._policy, tenacity.Retrying))
        if not isinstance(self._policy, tenacity.Retrying):
            loop.sleep = tenacity.sleep  # the sleep of an AsyncRetrying cannot be awaited here
        return loop

    def retry(self, state: RetryCallState) -> bool:
        return self._allowed(state) and bool(self._policy.retry(state))

    def wait(self, state: RetryCallState) -> float:
        return pause_before_retry(self._policy.wait(state), self._error_of(state))

    def stop(self, state: RetryCallState) -> bool:
        # The policy last: its budget must not count a retry that another rule forbids.
        return (self._must_stop(state) or bool(self._policy.stop(state))) and self._raise_last_error(state)

    def drop_last_error(self) -> None:
        """Drops the last error, as a reference cycle would keep it and the call's locals alive."""
        if self._state is not None:
            self._state.outcome = None

    def _allowed(self, state: RetryCallState) -> bool:
        error = self._error_of(state)
        return error is None or may_retry(error, self._handled)

    def _must_stop(self, state: RetryCallState) -> bool:
        if exceeds_deadline(state.upcoming_sleep):
            return True
        # tenacity does not call `retry` for its own TryAgain, so the error behind it decides here.
        error = self._error_of(state)
        if not isinstance(error, tenacity.TryAgain):
            return False
        reason = error.__cause__ or error.__context__
        return reason is not None and reason is not self._handled and not may_retry(reason, self._handled)

    def _raise_last_error(self, state: RetryCallState) -> bool:
        # tenacity would raise the last error next, but from a frame that keeps it alive.
        if self._reraises(state):
            cast("tenacity.Future", state.outcome).result()
        return True

    def _reraises(self, state: RetryCallState) -> bool:
        error, policy = self._error_of(state), self._policy
        if error is None or isinstance(error, tenacity.TryAgain):
            return False  # tenacity handles those
        return policy.reraise and not policy.retry_error_callback

    def _apply_rules(self, loop: B) -> B:
        loop.retry, loop.wait, loop.stop = cast("Any", (self.retry, self.wait, self.stop))
        if self._began is not None:
            loop.before = tenacity.before_nothing  # it has run already
        return loop

    def _error_of(self, state: RetryCallState) -> BaseException | None:
        self._state = state
        if self._began is not None:
            state.start_time = self._began
        return None if state.outcome is None else state.outcome.exception()


class AsyncRules(Rules):
    """`Rules` whose strategies may be coroutine functions."""

    def loop(self) -> AsyncRetrying:  # type: ignore[override]
        loop: Any = self._apply_rules(_copy_for_call(self._policy, AsyncRetrying))
        if self._policy.sleep is tenacity.sleep:
            loop.sleep = AsyncRetrying().sleep  # time.sleep would block the event loop
        else:
            loop.sleep = self.sleep
        return cast("AsyncRetrying", loop)

    async def retry(self, state: RetryCallState) -> bool:  # type: ignore[override]
        return self._allowed(state) and bool(await _resolve(self._policy.retry(state)))

    async def wait(self, state: RetryCallState) -> float:  # type: ignore[override]
        return pause_before_retry(await _resolve(self._policy.wait(state)), self._error_of(state))

    async def stop(self, state: RetryCallState) -> bool:  # type: ignore[override]
        done = self._must_stop(state) or bool(await _resolve(self._policy.stop(state)))
        return done and self._raise_last_error(state)

    async def sleep(self, seconds: float) -> None:
        await _resolve(self._policy.sleep(seconds))


async def _resolve(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
