"""Makes a thread or an asyncio task wait in the queue, and wakes it. Must not import gates."""

from __future__ import annotations

import asyncio
import threading

from guardrails._core.bulkhead import Waiter

__all__ = ["TaskWaiter", "ThreadWaiter", "WakeableWaiter", "on_event_loop"]


def on_event_loop() -> bool:
    """True if this thread runs an event loop, so that blocking it would stop every task of the loop."""
    return asyncio._get_running_loop() is not None  # noqa: SLF001 - documented, and does not raise


class WakeableWaiter(Waiter):
    """A caller in the queue that can be woken."""

    __slots__ = ()

    def wake(self) -> bool:
        """Wakes the caller; False if it cannot run any more."""
        raise NotImplementedError


class ThreadWaiter(WakeableWaiter):
    """A thread that waits."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, seconds: float) -> None:
        """Blocks until woken, for at most ``seconds``."""
        self._lock.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))

    def wake(self) -> bool:
        """See WakeableWaiter. Always True: a thread that died looks like one that is slow."""
        self._lock.release()
        return True


class TaskWaiter(WakeableWaiter):
    """An asyncio task that waits. Any thread may wake it."""

    __slots__ = ("_loop", "_thread", "_woken")

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._woken: asyncio.Future[None] | None = None

    async def wait(self, seconds: float) -> None:
        """Suspends the task until woken, for at most ``seconds``."""
        woken = self._woken = self._loop.create_future()
        # The verdict is set before the wake-up, so one that came before the future existed is seen here.
        if self.verdict is not None:
            return
        timer = self._loop.call_later(max(seconds, 0.0), self._set_woken)
        try:
            await woken
        finally:
            timer.cancel()

    def wake(self) -> bool:
        """See WakeableWaiter. False if the loop is closed."""
        if self._thread == threading.get_ident():
            if self._loop.is_closed():
                return False
            self._set_woken()
            return True
        try:
            self._loop.call_soon_threadsafe(self._set_woken)
        except RuntimeError:
            return False
        return True

    def _set_woken(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
