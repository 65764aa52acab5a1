"""Signals: the first one ends the run in order, and later ones are ignored.

Depends on signals and the event loop; must not know the run.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType, TracebackType
    from typing import Self

__all__ = ["InterruptedRunError", "Interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
T = TypeVar("T")


class InterruptedRunError(Exception):
    """A signal ended the run; everything has been stopped.

    Attributes:
        signum: Number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class Interrupts:
    """Ends the run in order at the first signal, and ignores later ones.

    The handler raises no exception, because a process that was just started would be lost. While the event
    loop runs, the signal cancels the coroutine; before that, `check` notices the signal.
    """

    def __init__(self) -> None:
        self._caught: int | None = None
        self._cancel: Callable[[], object] | None = None
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._usual = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._usual.items():
            # After an interrupt the process ends: a later signal must not change its exit code.
            signal.signal(number, handler if self._caught is None else signal.SIG_IGN)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self._caught is None:
            self._caught = signum
            if self._cancel is not None:
                self._cancel()

    def check(self) -> None:
        """Raises `InterruptedRunError` if a signal has come."""
        if self._caught is not None:
            raise InterruptedRunError(self._caught)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine as `asyncio.run` does; the first signal cancels it."""

        async def main() -> T:
            loop, task = asyncio.get_running_loop(), asyncio.ensure_future(coroutine)
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            if self._caught is not None:
                task.cancel()
            try:
                return await task
            finally:
                self._cancel = None

        try:
            return asyncio.run(main())
        except asyncio.CancelledError:
            self.check()
            raise
