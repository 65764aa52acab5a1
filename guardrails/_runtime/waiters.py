"""The one place that tells threads from event loops: how a caller waits at its place, and is woken."""

from __future__ import annotations

import asyncio
import threading

from guardrails._core.bulkhead import Waiter

__all__ = ["TaskWaiter", "ThreadWaiter", "WakeableWaiter", "on_event_loop"]


def on_event_loop() -> bool:
    """Whether this thread is running an event loop, so that blocking it would stop everybody else."""
    return asyncio._get_running_loop() is not None  # noqa: SLF001 - documented, and does not raise


class WakeableWaiter(Waiter):
    """A place whose caller can be woken."""

    __slots__ = ()

    def wake(self) -> bool:
        """Wakes the caller; False when it can never come back."""
        raise NotImplementedError


class ThreadWaiter(WakeableWaiter):
    """A thread that waits."""

    __slots__ = ("_bell",)

    def __init__(self) -> None:
        super().__init__()
        self._bell = threading.Lock()
        self._bell.acquire()

    def wait(self, seconds: float) -> None:
        """Blocks until woken, at most ``seconds``."""
        self._bell.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))

    def wake(self) -> bool:
        """See Waiting. A thread that died while waiting cannot be told from a slow one."""
        self._bell.release()
        return True


class TaskWaiter(WakeableWaiter):
    """An asyncio task that waits; it may be woken from any thread."""

    __slots__ = ("_bell", "_loop", "_thread")

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._bell: asyncio.Future[None] | None = None

    async def wait(self, seconds: float) -> None:
        """Suspends the task until woken, at most ``seconds``."""
        bell = self._bell = self._loop.create_future()
        # A verdict is written before it is told, so one that came before there was a bell shows here.
        if self.verdict is not None:
            return
        timer = self._loop.call_later(max(seconds, 0.0), self._fire)
        try:
            await bell
        finally:
            timer.cancel()

    def wake(self) -> bool:
        """See Waiting: a closed loop runs nobody any more."""
        if self._thread == threading.get_ident():
            if self._loop.is_closed():
                return False
            self._fire()
            return True
        try:
            self._loop.call_soon_threadsafe(self._fire)
        except RuntimeError:
            return False
        return True

    def _fire(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)
