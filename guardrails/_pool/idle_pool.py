"""The operations on the idle connections of a pool that its upkeep needs. Must not import a pool or a guard.

The same code serves pools in threads and on event loops. It is a coroutine. In threads no operation waits for
an event loop, so `run_to_end` runs it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from guardrails._pool.life import Age
from guardrails._runtime.threads import daemon

__all__ = ["IdlePool", "run_to_end"]

T = TypeVar("T")


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never waits for an event loop, and returns its result."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("this work needs an event loop")


class IdlePool(ABC):
    """The idle connections of one pool. A connection that is checked out is never touched."""

    @abstractmethod
    def idle(self) -> list[tuple[Any, Age]]:
        """Returns the open connections in the pool that belong to this process and event loop."""

    @abstractmethod
    def open_count(self) -> int:
        """Returns the number of open connections, idle and checked out."""

    @abstractmethod
    def take(self, connection: Any) -> bool:
        """Takes an idle connection out of the pool; False if it is no longer there."""

    @abstractmethod
    def put_back(self, connection: Any) -> None:
        """Returns a connection to the place in the pool that is used last."""

    @abstractmethod
    async def close(self, connection: Any) -> None:
        """Closes a connection that was taken out, and makes room for another."""

    async def close_oldest(self) -> bool:
        """Closes the connection that has been idle for longest; False if none is idle."""
        for connection, _ in sorted(self.idle(), key=lambda pair: pair[1].used):
            if self.take(connection):
                await self.close(connection)
                return True
        return False

    @abstractmethod
    async def ping(self, connection: Any) -> bool:
        """Pings a connection that was taken out, as neutral evidence; False if it does not answer."""

    @abstractmethod
    async def open(self) -> bool:
        """Opens a connection into the pool, as evidence; False if the pool has no room."""

    # --- where the connections may be touched; `LoopUpkeep` overrides these --------------------------

    def loop(self) -> Any:
        """Returns the event loop that runs here; None in threads."""
        return None

    def in_threads(self) -> bool:
        """Returns True if the connections may be touched in any thread."""
        return True

    async def sleep(self, seconds: float) -> None:
        """Waits a moment."""
        time.sleep(seconds)  # noqa: ASYNC251 - no event loop runs it

    def start(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Starts a piece of work.

        Raises:
            RuntimeError: There is no place for it: no thread can be started, or the event loop is closed.
        """
        daemon("guardrails-upkeep", lambda: run_to_end(work())).start()
