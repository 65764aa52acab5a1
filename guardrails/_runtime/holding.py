"""Blocks whose connections may be held idle for longer.

Depends on context variables; must not import pools.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, Self

from guardrails._util.checks import Faults
from guardrails._util.weak_registry import WeakRegistry

__all__ = ["current_block", "holding", "on_enter"]


class _Pool(Protocol):
    def cover(self, block: holding) -> None:
        """Applies a block to the connections that its caller has already taken."""


_innermost: ContextVar[holding | None] = ContextVar("guardrails_holding", default=None)

_pools: WeakRegistry[Any] = WeakRegistry()


class holding:  # noqa: N801 - used as a function, as contextlib.closing
    """Lets the connections of a block stay idle for up to ``seconds``, in place of ``max_idle_hold``.

    ::

        with holding(600), engine.connect() as connection:
            ...  # LISTEN, an advisory lock, a slow call to another service

    It covers the connections that this thread or task has at the start of the block, and those that code
    inside the block takes, tasks that it starts included. The innermost block counts. It never lowers
    ``max_idle_hold``. When the block ends, the idle time of its connections starts again from zero. Works in
    synchronous and asynchronous code.

    Args:
        seconds: The time for which nothing may run on a connection.

    Raises:
        ConfigurationError: ``seconds`` is not a number of seconds above 0.
    """

    __slots__ = ("ended", "outer", "seconds")

    def __init__(self, seconds: float) -> None:
        faults = Faults("holding")
        faults.seconds("seconds", seconds)
        faults.raise_if_any()
        self.seconds = float(seconds)
        self.outer: holding | None = None
        self.ended: float | None = None

    def __enter__(self) -> Self:
        self.outer, self.ended = current_block(), None
        _innermost.set(self)
        for pool in _pools.living():
            pool.cover(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ended = time.monotonic()
        if _innermost.get() is self:  # the block may end in another context than the one in which it began
            _innermost.set(self.outer)


def current_block() -> holding | None:
    """The innermost block that has not ended."""
    block = _innermost.get()
    while block is not None and block.ended is not None:
        block = block.outer
    return block


def on_enter(pool: _Pool) -> None:
    """Calls ``pool.cover(block)`` at the start of every block, for as long as the pool lives."""
    _pools.add(pool)
