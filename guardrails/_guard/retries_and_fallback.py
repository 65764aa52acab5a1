"""Adds retries and a fallback to a guarded function. Imports `guardrails._retry` only when it is needed.

The order from the inside: function, guard, retries, fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from guardrails._util.checks import Faults

if TYPE_CHECKING:
    from tenacity import BaseRetrying

    from guardrails._guard.guard import Guard

__all__ = ["AsyncWithFallback", "WithFallback", "with_retries_and_fallback"]

P = ParamSpec("P")
T = TypeVar("T")
F_co = TypeVar("F_co", covariant=True)

Decorator = Callable[[Any], Any]


class WithFallback(Protocol[F_co]):
    """The type of a decorator with a fallback: the function also returns the fallback's type."""

    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T | F_co]]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> Callable[P, T | F_co]: ...
    def __call__(self, fn: Any, /) -> Any:
        """Decorates a function."""


class AsyncWithFallback(Protocol[F_co]):
    """The type of a decorator with an async fallback, for async functions only."""

    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T | F_co]]:
        """Decorates a function."""


def with_retries_and_fallback(
    decorate: Decorator,
    guard: Guard,
    retry: BaseRetrying | None,
    fallback: Callable[[Exception], Any] | None,
) -> Decorator:
    """Makes the decorator that guards a function, retries it and calls its fallback.

    Raises:
        ConfigurationError: ``retry`` is not a tenacity object, or ``fallback`` cannot be called.
    """
    layers: list[Decorator] = [decorate]
    if retry is not None:
        # Imported here: tenacity imports asyncio.
        from guardrails._retry.loop import check_policy, retried  # noqa: PLC0415

        check_policy("guarded", retry)
        layers.append(lambda fn: retried(fn, retry))
    if fallback is not None:
        from guardrails._retry.fallback import Fallback  # noqa: PLC0415 - few functions have one

        faults = Faults("guarded")
        faults.callable("fallback", fallback)
        faults.raise_if_any()
        policy = guard.call_settings.policy
        layers.append(Fallback(fallback, None if policy is None else policy.is_failure).around)

    def add_layers(fn: Any) -> Any:
        if isinstance(fn, staticmethod | classmethod):
            return type(fn)(add_layers(fn.__func__))
        wrapped = fn
        for layer in layers:
            wrapped = layer(wrapped)
        wrapped.__wrapped__ = fn
        return wrapped

    return add_layers
