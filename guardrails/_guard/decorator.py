"""`@guarded`: picks the wrapper once, when the function is decorated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Never, ParamSpec, TypeVar, cast, overload

from guardrails._core.criticality import CLASSES, Criticality
from guardrails._core.outcome import Outcome
from guardrails._guard.call import Call, run_async
from guardrails._guard.guard import Guard, compartment_for
from guardrails._guard.recovery import Answered, AsyncAnswered, recovering
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
def guarded(  # type: ignore[overload-overlap] # a coroutine is a result, too; it is asked for first
    guard: Guard,
    *,
    timeout: float | None = None,
    retry: BaseRetrying | None = None,
    fallback: Callable[[Exception], Coroutine[Any, Any, F]],
    criticality: Criticality | None = None,
) -> AsyncAnswered[F]: ...
@overload
def guarded(
    guard: Guard,
    *,
    timeout: float | None = None,
    retry: BaseRetrying | None = None,
    fallback: Callable[[Exception], F],
    criticality: Criticality | None = None,
) -> Answered[F]: ...
def guarded(
    guard: Guard,
    *,
    timeout: float | None = None,
    retry: BaseRetrying | None = None,
    fallback: Callable[[Exception], Any] | None = None,
    criticality: Criticality | None = None,
    **_misspelt: Never,
) -> Any:
    """Guards each call of a function or method, synchronous or not.

    ::

        @guarded(db, timeout=0.5)
        async def load(user_id: int) -> User: ...

    The decorated function keeps its signature and its kind. On a guard attached to an engine or a
    client it opens a scope (deadline, compartment, early refusal); the checkout inside takes the slot.

    Args:
        guard: The guard to pass, or a compartment of one.
        timeout: Seconds for each call instead of the guard's own timeout; with ``retry``, for each attempt.
        retry: A tenacity ``Retrying`` or ``AsyncRetrying``, such as `retrying` returns. Asking for it says
            that the function may run twice. Each attempt passes the guard anew.
        fallback: Called with the error when the call was refused, or failed and is not tried again; what
            it returns is returned. Not for a cancellation, a bug, an answer of the database, or a
            `CommitUnknownError`, which must be seen.
        criticality: How much its calls matter, and everything they call: ``"CRITICAL_PLUS"``,
            ``"CRITICAL"``, ``"SHEDDABLE_PLUS"`` or ``"SHEDDABLE"``. Under pressure the lower is refused
            first. None is what the caller's is, and without one ``"CRITICAL"``.

    Raises:
        ConfigurationError: ``timeout`` is not a number above 0, or another argument is wrong.
        TypeError: What it decorates is no function, or a generator: between two ``yield`` the caller runs,
            who would hold the slot. Guard the step that does the work, or open ``guard.call()`` where it is
            used. Or it is synchronous, and its fallback is not. A call raises it for a result that is work
            still to be done: a coroutine, a generator, a task or future, a context manager of contextlib's.
    """
    refuse_unknown("guarded", _misspelt, guarded)
    if not isinstance(guard, Guard):
        raise TypeError(f"guarded() takes a Guard first, got {type(guard).__name__}: write @guarded(guard)")
    guard.call(timeout)  # a wrong timeout is found where it is written, not at the first call
    rank = None if criticality is None else _rank(criticality)

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        if isinstance(fn, staticmethod | classmethod):
            return cast("Callable[P, T]", type(fn)(decorate(fn.__func__)))
        check_guardable(fn)
        own = _own_compartment(guard, fn)
        wrapped: Any = _wrapper_for(own, timeout, fn)
        return cast("Callable[P, T]", wrapped if rank is None else _mattering(wrapped, rank))

    return decorate if retry is None and fallback is None else recovering(decorate, guard, retry, fallback)


def _wrapper_for(guard: Guard, timeout: float | None, fn: Callable[..., Any]) -> Callable[..., Any]:
    call_settings = guard.call_settings

    @_wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = Call()
        # As in `Guard.run`, word for word.
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
                call.abandon()  # it was interrupted, at its first instruction
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


def _mattering(fn: Callable[..., Any], rank: int) -> Callable[..., Any]:
    """Says of a guarded function how much it matters."""

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
