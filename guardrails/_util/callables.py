"""Classifies callables and their results for the decorators. Depends on errors; must not import guards."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import (
    _AsyncGeneratorContextManager,
    _GeneratorContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Any

from guardrails._util.texts import with_article
from guardrails.errors import GuardrailsError

__all__ = [
    "FINISHED",
    "UnfinishedError",
    "check_finished",
    "check_guardable",
    "is_async",
    "is_generator",
    "label",
]


def is_async(fn: Callable[..., Any]) -> bool:
    """True if calling ``fn`` returns an awaitable."""
    return any(inspect.iscoroutinefunction(form) for form in _forms(fn))


def is_generator(fn: Callable[..., Any]) -> bool:
    """True if calling ``fn`` returns a generator or an async generator."""
    return any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in _forms(fn))


def label(fn: object) -> str:
    """The name of a callable for messages."""
    return getattr(fn, "__qualname__", type(fn).__name__)


def _forms(fn: Any) -> tuple[object, ...]:
    """The callable, the object that it is a partial of, and the ``__call__`` of that object."""
    inner = fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    return fn, inner, _call_of(inner)


def _call_of(fn: Callable[..., Any]) -> object:
    return None if inspect.isroutine(fn) or isinstance(fn, type) else getattr(fn, "__call__", None)  # noqa: B004


class UnfinishedError(GuardrailsError, TypeError):
    """A guarded call returned work that has not run yet and would run outside the guard.

    It is a TypeError, as the code is wrong, and a GuardrailsError, so that it does not count as a failure.
    """


_MOST_TYPES = 256

FINISHED: set[type] = {bool, bytes, dict, float, int, list, set, str, tuple, type(None)}
"""Types of results that are no unfinished work, so that a call needs one lookup. `check_finished` adds types.
It clears the set when it is full, as a program can make classes without end."""

_UNFINISHED: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("a coroutine", (Coroutine,)),
    ("a generator", (Generator,)),
    ("an async generator", (AsyncGenerator,)),
    ("a future", (asyncio.Future, concurrent.futures.Future)),
    ("a context manager", (_GeneratorContextManager, _AsyncGeneratorContextManager)),
)

_ADVICE = {
    "a generator": "guard what makes each item, or return a list",
    "an async generator": "guard what makes each item, or return a list",
    "a future": "make it an async def that awaits it, or guard the function that runs",
    "a context manager": "write with guard.call(): around its use, or async with",
}

_CONTEXT_MANAGERS = {contextmanager(iter).__code__, asynccontextmanager(aiter).__code__}
"""The code objects that all functions made by these two decorators share."""


def check_guardable(fn: object) -> None:
    """Raises TypeError unless each call of ``fn`` has done its work when it returns."""
    if isinstance(fn, type):
        raise TypeError(
            f"cannot guard the class {fn.__name__}: it would be no class any more. "
            "Guard its methods that do the work."
        )
    if not callable(fn):
        hint = ""
        if isinstance(fn, property | functools.cached_property):
            hint = ": write @guarded below @property, on the function"
        raise TypeError(f"cannot guard {with_article(type(fn).__name__)}, which is no function{hint}")
    if is_generator(fn):
        raise TypeError(
            f"cannot guard the generator {label(fn)}: its slot would be held while the caller runs. "
            "Guard the function that does one step, or use guard.call() around the loop."
        )
    if any(getattr(form, "__code__", None) in _CONTEXT_MANAGERS for form in _forms(fn)):
        raise TypeError(
            f"cannot guard the context manager {label(fn)}: only making it would be guarded. "
            "Write with guard.call(): inside it, or around its use."
        )


def check_finished(fn: Callable[..., Any], result: Any, advice: str) -> None:
    """Raises UnfinishedError if a guarded call returned work that has not run yet.

    Args:
        fn: The function that was called.
        result: Its result, of a type that is not in `FINISHED`.
        advice: The advice in the message for a coroutine.
    """
    for what, kinds in _UNFINISHED:
        if isinstance(result, kinds):
            close = getattr(result, "close", None)
            if what in {"a coroutine", "a generator"} and close is not None:
                close()
            how = advice if what == "a coroutine" else _ADVICE[what]
            raise UnfinishedError(f"{label(fn)} returned {what}, which would run outside the guard: {how}")
    if len(FINISHED) >= _MOST_TYPES:
        FINISHED.clear()
    FINISHED.add(type(result))
