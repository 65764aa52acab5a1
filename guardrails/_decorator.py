"""`@guarded`: picks the wrapper once, when the function is decorated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, cast

from guardrails._call import Call, not_run
from guardrails._callables import is_async, is_generator, label
from guardrails._guard import Guard

__all__ = ["guarded"]

P = ParamSpec("P")
T = TypeVar("T")


def guarded(guard: Guard, *, timeout: float | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Guards each call of a function or method, synchronous or not.

    ::

        @guarded(db, timeout=0.5)
        async def load(user_id: int) -> User: ...

    The decorated function keeps its signature and its kind. On a guard attached to an engine or a
    client it opens a scope (deadline, compartment, early refusal); the checkout inside takes the slot.

    Args:
        guard: The guard to pass, or a compartment of one.
        timeout: Seconds for each call instead of the guard's own timeout.

    Raises:
        ConfigurationError: ``timeout`` is not a number above 0.
        TypeError: The function is a generator: between two ``yield`` the caller runs, who would hold
            the slot. Guard the step that does the work, or open ``guard.call()`` where it is used.
    """
    if not isinstance(guard, Guard):
        raise TypeError(f"guarded() takes a Guard first, got {type(guard).__name__}: write @guarded(guard)")
    guard.call(timeout)  # a wrong timeout is found where it is written, not at the first call

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        if isinstance(fn, staticmethod | classmethod):
            return cast("Callable[P, T]", type(fn)(decorate(fn.__func__)))
        _refuse_generators(fn)
        if is_async(fn):
            return cast("Callable[P, T]", _wrap_async(guard, timeout, fn))
        return _wrap_sync(guard, timeout, fn)

    return decorate


def _wrap_sync(guard: Guard, timeout: float | None, fn: Callable[P, T]) -> Callable[P, T]:
    passage = guard.passage

    @_wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        call = Call()
        if not call.slip_in(passage, passage.timeout if timeout is None else timeout):
            call.come_in()
        try:
            result = fn(*args, **kwargs)
            if type(result) is CoroutineType:
                raise not_run(fn, result, "make it an async def")  # noqa: TRY301
            if passage.judges:
                call.judge(result)
            if call.slip_out():
                return result
        except BaseException as error:
            call.leave(error)
            raise
        call.leave(None)
        return result

    return wrapper


def _wrap_async(guard: Guard, timeout: float | None, fn: Callable[..., Any]) -> Callable[..., Any]:
    passage = guard.passage

    @_wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = Call()
        if not call.slip_in(passage, passage.timeout if timeout is None else timeout):
            await call.come_in_async()
        call.set_alarm()
        try:
            result = await fn(*args, **kwargs)
            if passage.judges:
                call.judge(result)
        except BaseException as error:
            call.leave_async(error)
            raise
        call.leave_async(None)
        return result

    return wrapper


def _wraps(fn: Callable[..., Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    # A partial or a callable object has no __name__; functools.wraps copies what there is.
    return functools.wraps(fn)


def _refuse_generators(fn: Callable[..., Any]) -> None:
    if is_generator(fn):
        raise TypeError(
            f"cannot guard the generator {label(fn)}: its slot would be held while the caller runs. "
            "Guard the function that does one step, or use guard.call() around the loop."
        )
