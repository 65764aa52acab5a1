"""`@guarded`: chooses the wrapper when the function is decorated. Depends on guards and calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Never, ParamSpec, TypeVar, cast, overload

from guardrails._core.criticality import CLASSES, Criticality
from guardrails._core.outcome import Outcome
from guardrails._guard.call import Call, run_async
from guardrails._guard.compartments import compartment_for
from guardrails._guard.guard import Guard
from guardrails._guard.retries_and_fallback import AsyncWithFallback, WithFallback, with_retries_and_fallback
from guardrails._runtime.scope import RankScope, close, current, enter
from guardrails._util.callables import FINISHED, check_finished, check_guardable, is_async, label
from guardrails._util.checks import Faults, refuse_unknown

if TYPE_CHECKING:
    from tenacity import BaseRetrying

__all__ = ["guarded"]

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F")

_SUCCESS = Outcome.SUCCESS  # an enum's members are slow to reach in Python 3.11


@overload
def guarded(
    guard: Guard,
    *,
    timeout: float | None = None,
    retry: BaseRetrying | None = None,
    criticality: Criticality | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
@overload
def guarded(  # type: ignore[overload-overlap] # a coroutine is a result, too: the first overload that fits counts
    guard: Guard,
    *,
    timeout: float | None = None,
    retry: BaseRetrying | None = None,
    fallback: Callable[[Exception], Coroutine[Any, Any, F]],
    criticality: Criticality | None = None,
) -> AsyncWithFallback[F]: ...
@overload
def guarded(
    guard: Guard,
    *,
    timeout: float | None = None,
    retry: BaseRetrying | None = None,
    fallback: Callable[[Exception], F],
    criticality: Criticality | None = None,
) -> WithFallback[F]: ...
def guarded(
    guard: Guard,
    *,
    timeout: float | None = None,
    retry: BaseRetrying | None = None,
    fallback: Callable[[Exception], Any] | None = None,
    criticality: Criticality | None = None,
    **_misspelt: Never,
) -> Any:
    """Guards each call of a function or method, sync or async.

    ::

        @guarded(db, timeout=0.5)
        async def load(user_id: int) -> User: ...

    The decorated function keeps its signature and its kind. On a guard that is attached to an engine or a
    client it opens a scope with the deadline and the compartment; the checkout inside takes the slot.

    Args:
        guard: A guard or a compartment of one.
        timeout: Seconds for each call instead of the guard's timeout; with ``retry``, for each attempt.
        retry: A tenacity ``Retrying`` or ``AsyncRetrying``, such as `retrying` returns. The function must
            tolerate running twice. Each attempt is a new call through the guard.
        fallback: Called with the error when the call was refused, or failed and is not retried; its result
            is returned. It is not called for a cancellation, a bug, an answer of the database, or a
            `CommitUnknownError`, which the caller must handle.
        criticality: The class of its calls and of all calls inside them: ``"CRITICAL_PLUS"``, ``"CRITICAL"``,
            ``"SHEDDABLE_PLUS"`` or ``"SHEDDABLE"``. Under load the lowest class is refused first. None takes
            that of the enclosing call; without one it is ``"CRITICAL"``.

    Raises:
        ConfigurationError: ``timeout`` is not a number above 0, or another argument is wrong.
        TypeError: The decorated object is not a function; or it is a generator function, whose caller would
            hold the slot between two ``yield`` (guard the step that does the work, or open ``guard.call()``
            where the generator is used); or it is synchronous and its fallback is not. A call raises it for a
            result that is unfinished work: a coroutine, a generator, a task or future, or a context manager
            of contextlib.
    """
    refuse_unknown("guarded", _misspelt, guarded)
    if not isinstance(guard, Guard):
        raise TypeError(f"guarded() takes a Guard first, got {type(guard).__name__}: write @guarded(guard)")
    guard.call(timeout)  # a wrong timeout raises here and not at the first call
    rank = None if criticality is None else _rank(criticality)

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        if isinstance(fn, staticmethod | classmethod):
            return cast("Callable[P, T]", type(fn)(decorate(fn.__func__)))
        check_guardable(fn)
        own = _own_compartment(guard, fn)
        wrapped: Any = _wrapper_for(own, timeout, fn)
        return cast("Callable[P, T]", wrapped if rank is None else _with_criticality(wrapped, rank))

    return (
        decorate
        if retry is None and fallback is None
        else with_retries_and_fallback(decorate, guard, retry, fallback)
    )


def _wrapper_for(guard: Guard, timeout: float | None, fn: Callable[..., Any]) -> Callable[..., Any]:
    call_settings = guard.call_settings

    @_wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = Call()
        # A copy of the lines in `Guard.run`: a shared function would cost each call a frame.
        if not call.try_enter_fast(call_settings, call_settings.timeout if timeout is None else timeout):
            call.enter()
        try:
            result = fn(*args, **kwargs)
            if type(result) not in FINISHED:
                check_finished(fn, result, "make it an async def")
            outcome = call_settings.judge(result) if call_settings.judges else _SUCCESS
            if not call.try_exit_fast(outcome):
                call.leave(None, outcome)
        except BaseException as error:
            try:
                call.leave(error)
            except BaseException:
                call.abandon()  # `leave` was interrupted at its first instruction
                raise
            raise
        return result

    @_wraps(fn)
    async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
        return await run_async(
            call_settings, call_settings.timeout if timeout is None else timeout, fn, args, kwargs
        )

    return async_wrapper if is_async(fn) else wrapper


def _rank(criticality: object) -> int:
    faults = Faults("guarded")
    faults.choice("criticality", criticality, CLASSES)
    faults.raise_if_any()
    return CLASSES.index(cast("Criticality", criticality))


def _with_criticality(fn: Callable[..., Any], rank: int) -> Callable[..., Any]:
    """Runs a guarded function in a scope with its criticality."""

    @_wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = enter(RankScope(rank, current()))
        try:
            return fn(*args, **kwargs)
        finally:
            close(scope)

    @_wraps(fn)
    async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
        scope = enter(RankScope(rank, current()))
        try:
            return await fn(*args, **kwargs)
        finally:
            close(scope)

    return async_wrapper if is_async(fn) else wrapper


def _own_compartment(guard: Guard, fn: Callable[..., Any]) -> Guard:
    name = label(fn)
    return compartment_for(guard, f"{getattr(fn, '__module__', '')}.{name}", name)


def _wraps(fn: Callable[..., Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    # A partial or a callable object has no __name__; functools.wraps copies what there is.
    return functools.wraps(fn)
