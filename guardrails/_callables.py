"""What kind of callable a decorator was given. Knows nothing of guards."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["is_async", "is_generator", "label", "not_run"]


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives something to await."""
    return any(inspect.iscoroutinefunction(form) for form in _forms(fn))


def is_generator(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives a stream, synchronous or not."""
    return any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in _forms(fn))


def label(fn: object) -> str:
    """What to call it in a message."""
    return getattr(fn, "__qualname__", type(fn).__name__)


def _forms(fn: Any) -> tuple[object, ...]:
    """The callable itself, what it is a partial of, and that object's ``__call__``."""
    inner = fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    return fn, inner, _call_of(inner)


def _call_of(fn: Callable[..., Any]) -> object:
    return None if inspect.isroutine(fn) or isinstance(fn, type) else getattr(fn, "__call__", None)  # noqa: B004


def not_run(fn: Callable[..., Any], coroutine: Any, advice: str) -> TypeError:
    """The error for a synchronous call that gave a coroutine: guarded in name, and never in fact."""
    coroutine.close()
    return TypeError(f"{label(fn)} returned a coroutine, which would run outside the guard: {advice}")
