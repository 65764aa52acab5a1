"""Runs functions and blocks in a tenacity loop, one for each call. Must not import guards."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from typing import Any, ParamSpec, TypeVar, cast

import tenacity
from tenacity import AsyncRetrying, AttemptManager, BaseRetrying

from guardrails._retry.rules import AsyncRules, Rules, SharedRetrying
from guardrails._util.callables import is_async, label
from guardrails._util.checks import Faults
from guardrails.errors import ConfigurationError

__all__ = ["Retrying", "check_policy", "retried"]

P = ParamSpec("P")
T = TypeVar("T")

Publish = Callable[[dict[str, Any]], None]

_STRATEGIES = ("retry", "wait", "stop", "before", "after", "before_sleep", "retry_error_callback")


class Retrying(SharedRetrying):
    """A tenacity ``Retrying`` that threads and asyncio tasks may share. Made by `retrying`.

    Each use runs its own loop under the rules, so that one object serves many concurrent calls.
    """

    def __call__(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Calls ``fn`` until it succeeds or must not be called again; awaits it if it is async."""
        return retried(fn, self)(*args, **kwargs)

    def wraps(self, f: Callable[P, T]) -> Any:
        """Decorates a function, asynchronous or not."""
        return retried(f, self)

    def __iter__(self) -> Generator[AttemptManager, None, None]:
        _refuse_async_strategies("retrying", self, "a for loop")
        rules = Rules(self)
        loop = rules.loop()
        try:
            yield from loop
        finally:
            self.statistics.update(loop.statistics)
            rules.drop_last_error()

    def __aiter__(self) -> AsyncRetrying:
        return AsyncRules(self).loop().__aiter__()


def retried(fn: Callable[P, T], policy: BaseRetrying) -> Callable[P, T]:
    """Wraps a function so that each call of it runs a loop of a tenacity object.

    Each call reads the object's settings and changes none. ``statistics`` of the object (one for each thread,
    as in tenacity) and of the returned function are those of the call that ended last.

    Raises:
        ConfigurationError: ``fn`` is synchronous and a strategy of the object is async.
    """
    statistics: dict[str, Any] = {}

    def publish(figures: dict[str, Any]) -> None:
        statistics.update(figures)
        policy.statistics.update(figures)

    if is_async(fn):
        wrapper: Any = _retried_async(fn, policy, publish)
    else:
        _refuse_async_strategies("retrying", policy, label(fn))
        wrapper = _retried_sync(fn, policy, publish)
    wrapper.statistics = statistics
    return cast("Callable[P, T]", wrapper)


def _retried_sync(fn: Callable[P, T], policy: BaseRetrying, publish: Publish) -> Callable[P, T]:
    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        rules = Rules(policy)
        function = fn
        if rules.try_without_loop():
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - the loop raises it
                function = _replay(error, fn)
            else:
                publish(rules.first_attempt_statistics())
                return result
        loop = rules.loop()
        try:
            return loop(function, *args, **kwargs)
        finally:
            publish(loop.statistics)
            rules.drop_last_error()

    return wrapper


def _retried_async(fn: Callable[..., Any], policy: BaseRetrying, publish: Publish) -> Callable[..., Any]:
    attempt = _coroutine_function(fn)

    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        rules = AsyncRules(policy)
        function = attempt
        if rules.try_without_loop():
            try:
                result = await attempt(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - the loop raises it
                function = _replay_async(error, attempt)
            else:
                publish(rules.first_attempt_statistics())
                return result
        loop = rules.loop()
        try:
            return await loop(function, *args, **kwargs)
        finally:
            publish(loop.statistics)
            rules.drop_last_error()

    return wrapper


def _coroutine_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function that tenacity sees as async. It does not see a partial of an object as such."""
    if inspect.iscoroutinefunction(fn):
        return fn

    @functools.wraps(fn)
    async def attempt(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    return attempt


def _replay(error: BaseException, fn: Callable[P, T]) -> Callable[P, T]:
    """Makes a function that raises ``error`` the first time and calls ``fn`` from then on."""
    first = [error]

    @functools.wraps(fn)
    def attempt(*args: P.args, **kwargs: P.kwargs) -> T:
        if first:
            raise first.pop()
        return fn(*args, **kwargs)

    return attempt


def _replay_async(error: BaseException, fn: Callable[..., Any]) -> Callable[..., Any]:
    first = [error]

    @functools.wraps(fn)
    async def attempt(*args: Any, **kwargs: Any) -> Any:
        if first:
            raise first.pop()
        return await fn(*args, **kwargs)

    return attempt


def check_policy(where: str, policy: object) -> None:
    """Raises ConfigurationError unless ``policy`` is a tenacity Retrying or AsyncRetrying."""
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
                f"{where}: the {name} strategy is async and {user} is not, so it cannot be awaited; "
                "give a synchronous one"
            )
