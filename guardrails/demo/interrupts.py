"""Ctrl-C and its relatives, made orderly: one signal ends the run, and no second one disturbs the end.

Knows signals and the event loop; never what is being run.
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
    """Turns the first signal into an orderly end, and lets no later one disturb it.

    Nothing is raised wherever the program happens to be: a process just started but not yet written
    down would be lost. Before the event loop runs the signal is noticed by `check`.
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
            # Once interrupted the process is about to say so and to end: no later signal changes its answer.
            signal.signal(number, handler if self._caught is None else signal.SIG_IGN)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self._caught is None:
            self._caught = signum
            if self._cancel is not None:
                self._cancel()

    def check(self) -> None:
        """Raises `InterruptedRunError` when a signal has come."""
        if self._caught is not None:
            raise InterruptedRunError(self._caught)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """`asyncio.run` that the first signal cancels."""

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
