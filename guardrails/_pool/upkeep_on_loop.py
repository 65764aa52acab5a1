"""The upkeep of a pool on an event loop. Depends on asyncio; must not import a pool."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from guardrails._pool.life import Age
from guardrails._pool.upkeep import PoolUpkeep

__all__ = ["LoopUpkeep"]


class LoopUpkeep(PoolUpkeep):
    """Looks at the idle connections, and works on them, on the event loop that opened the last one."""

    _home: weakref.ref[asyncio.AbstractEventLoop] | None = None

    def loop(self) -> Any:
        """See PoolUpkeep."""
        with suppress(RuntimeError):
            return asyncio.get_running_loop()
        return None

    def in_threads(self) -> bool:
        """See PoolUpkeep."""
        return False

    async def sleep(self, seconds: float) -> None:
        """See PoolUpkeep."""
        await asyncio.sleep(seconds)

    def opened(self, loop: Any = None, host: str | None = None, peer: str | None = None) -> Age:
        """See PoolUpkeep."""
        if loop is not None and (self._home is None or self._home() is not loop):
            self._home = weakref.ref(loop)
            self.reset_in_child()  # the work on the former loop, if any, has ended with it
        return super().opened(loop, host, peer)

    def start(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """See PoolUpkeep."""
        loop = None if self._home is None else self._home()
        if loop is None:
            raise RuntimeError("no event loop has opened a connection")
        loop.call_soon_threadsafe(self._begin, loop, work)

    def _begin(
        self, loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, object]]
    ) -> None:
        if self._has_work():
            self._task = loop.create_task(work(), name="guardrails-upkeep")  # a loop keeps no task alive
        else:
            self._end_check()
