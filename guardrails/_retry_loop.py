"""Retries: tenacity's loop, held to the rules of `_again`. Knows tenacity objects, not guards."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Generator
from typing import Any, ParamSpec, TypeVar, cast

import tenacity
from tenacity import AsyncRetrying, AttemptManager, BaseRetrying, RetryCallState

from guardrails._again import may_retry, no_time_for, pause
from guardrails._callables import is_async, label
from guardrails._checks import Faults
from guardrails.errors import ConfigurationError

__all__ = ["Retrying", "check_policy", "retried"]

P = ParamSpec("P")
T = TypeVar("T")
B = TypeVar("B", bound=BaseRetrying)

_STRATEGIES = ("retry", "wait", "stop", "before", "after", "before_sleep", "retry_error_callback")


class Retrying(tenacity.Retrying):
    """A tenacity ``Retrying`` for threads and for tasks, shared freely; `retrying` makes them.

    Each use runs a loop of its own, held to the rules, so that one object may serve many calls at once.
    """

    def __call__(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Calls ``fn`` until it succeeds or must not be called again; awaits it if it is async."""
        return retried(fn, self)(*args, **kwargs)

    def wraps(self, f: Callable[P, T]) -> Any:
        """Decorates a function, asynchronous or not."""
        return retried(f, self)

    def __iter__(self) -> Generator[AttemptManager, None, None]:
        _refuse_async_strategies("retrying", self, "a for loop")
        rules = _Rules(self)
        loop = rules.loop()
        try:
            yield from loop
        finally:
            self.statistics.update(loop.statistics)
            rules.let_go()

    def __aiter__(self) -> AsyncRetrying:
        return _AsyncRules(self).loop().__aiter__()


def retried(fn: Callable[P, T], policy: BaseRetrying) -> Callable[P, T]:
    """Wraps a function so that each call of it runs a loop of a tenacity object.

    The object's settings are read at each call and never written. ``statistics``, of the object (one
    for each thread, as tenacity has it) and of what is returned, are those of the call that ended last.

    Raises:
        ConfigurationError: The object is of no use for ``fn``.
    """
    statistics: dict[str, Any] = {}

    def publish(loop: BaseRetrying) -> None:
        statistics.update(loop.statistics)
        policy.statistics.update(loop.statistics)

    if is_async(fn):
        attempt = _coroutine_function(fn)

        @functools.wraps(fn)
        async def tried_async(*args: Any, **kwargs: Any) -> Any:
            rules = _AsyncRules(policy)
            loop = rules.loop()
            try:
                return await loop(attempt, *args, **kwargs)
            finally:
                publish(loop)
                rules.let_go()

        wrapper: Any = tried_async
    else:
        _refuse_async_strategies("retrying", policy, label(fn))

        @functools.wraps(fn)
        def tried(*args: P.args, **kwargs: P.kwargs) -> T:
            rules = _Rules(policy)
            loop = rules.loop()
            try:
                return loop(fn, *args, **kwargs)
            finally:
                publish(loop)
                rules.let_go()

        wrapper = tried
    wrapper.statistics = statistics
    return cast("Callable[P, T]", wrapper)


def _coroutine_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What tenacity, too, sees to be async: a partial of an object with an async ``__call__`` it does not."""
    if inspect.iscoroutinefunction(fn):
        return fn

    @functools.wraps(fn)
    async def attempt(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    return attempt


def check_policy(where: str, policy: object) -> None:
    """Raises ConfigurationError unless it is a tenacity object that can be used here."""
    if not isinstance(policy, tenacity.Retrying | AsyncRetrying):
        faults = Faults(where)
        hint = " (write retry=retrying(), or a Retrying(...) of tenacity's)"
        faults.add("retry", policy, "a tenacity Retrying or AsyncRetrying", hint)
        faults.raise_if_any()


def _refuse_async_strategies(where: str, policy: BaseRetrying, user: str) -> None:
    for name in _STRATEGIES:
        strategy = getattr(policy, name, None)
        if strategy is not None and is_async(strategy):
            raise ConfigurationError(
                f"{where}: the {name} strategy is async and {user} is not, so nobody could await it; "
                "give a synchronous one"
            )


# --- one loop for each call ------------------------------------------------------------------------


def _private(policy: BaseRetrying, kind: type[B]) -> B:
    """A copy of a tenacity object for one call, so that the user's own stays as it was."""
    if isinstance(policy, kind) and not isinstance(policy, Retrying):
        return policy.copy()
    copy = kind()
    vars(copy).update({name: value for name, value in vars(policy).items() if name != "_local"})
    return copy


class _Rules:
    """A policy's own strategies for one call, asked only where the rules leave a choice."""

    def __init__(self, policy: BaseRetrying) -> None:
        self._policy: Any = policy
        self._handled = sys.exception()
        self._state: RetryCallState | None = None

    def loop(self) -> tenacity.Retrying:
        loop = _private(self._policy, tenacity.Retrying)
        loop.retry, loop.wait, loop.stop = self.retry, self.wait, self.stop
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

    def let_go(self) -> None:
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
        # tenacity, too, raises the last error now, but from a frame that holds on to it: see `let_go`.
        if self._wants_the_error(state):
            cast("tenacity.Future", state.outcome).result()
        return True

    def _wants_the_error(self, state: RetryCallState) -> bool:
        error, policy = self._error_of(state), self._policy
        if error is None or isinstance(error, tenacity.TryAgain):
            return False  # tenacity knows what those stand for
        return policy.reraise and not policy.retry_error_callback

    def _error_of(self, state: RetryCallState) -> BaseException | None:
        self._state = state
        return None if state.outcome is None else state.outcome.exception()


class _AsyncRules(_Rules):
    """The same, where each strategy may be a coroutine function."""

    def loop(self) -> AsyncRetrying:  # type: ignore[override]
        loop: Any = _private(self._policy, AsyncRetrying)
        loop.retry, loop.wait, loop.stop = self.retry, self.wait, self.stop
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
