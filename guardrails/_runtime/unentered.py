"""Warns of a ``with`` block around a ``yield`` that has no effect. Depends on frames and the log alone."""

from __future__ import annotations

import inspect
import logging
import traceback
from itertools import takewhile
from types import CodeType
from typing import Any

__all__ = ["check_entered"]

_log = logging.getLogger("guardrails")
_SKIPPED = ("guardrails", "contextlib")
_warned_of: set[CodeType] = set()


def check_entered(scope: object, inner: Any) -> None:
    """Warns if a scope ends in another context than the one in which it began: it had no effect.

    The warning names the generator whose ``yield`` the scope encloses, once for each generator. Other callers
    get no warning: code that enters a block by hand may leave it elsewhere.

    Args:
        scope: The scope that ends.
        inner: The innermost scope of the context in which it ends.
    """
    while inner is not scope:
        if inner is None:
            _warn()
            return
        inner = inner.outer


def _warn() -> None:
    generator = _outermost_generator()
    if generator is None or generator in _warned_of:
        return
    _warned_of.add(generator)
    _log.warning(
        "the deadline or call around the yield of %s (%s:%d) has no effect: what runs between is in another "
        "context, as for a def dependency of FastAPI, which runs in a thread; make %s an async def",
        generator.co_qualname,
        generator.co_filename,
        generator.co_firstlineno,
        generator.co_name,
    )


def _outermost_generator() -> CodeType | None:
    stack = traceback.walk_stack(inspect.currentframe())
    codes = (
        frame.f_code
        for frame, _ in stack
        if frame.f_globals.get("__name__", "").split(".")[0] not in _SKIPPED
    )
    generators = list(takewhile(lambda code: code.co_flags & inspect.CO_GENERATOR, codes))
    return generators[-1] if generators else None
