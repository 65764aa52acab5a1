"""The idle connections of a pool of asyncpg: closed, pinged and opened on its event loop.

A holder is taken out of the pool's queue for that, where it counts as in use, and put back as the pool does
it. Depends on asyncpg's pools; must not import the pool's hooks.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from guardrails._dbapi.runner_on_loop import LoopRunner
from guardrails._guard.guard import Guard
from guardrails._pool.life import Age, LifeSettings
from guardrails._pool.upkeep_on_loop import LoopUpkeep
from guardrails.integrations.asyncpg._protocol import state_of

__all__ = ["AsyncpgUpkeep"]

_CLOSING = 1.0
"""Seconds that the server may take to see a connection closed."""


class AsyncpgUpkeep(LoopUpkeep):
    """The upkeep of one pool.

    Args:
        pool: The pool.
        guard: Its guard.
        settings: The settings of the pool's life.
        runner: Opens and pings connections as evidence.
    """

    def __init__(self, pool: Any, guard: Guard, settings: LifeSettings, runner: LoopRunner) -> None:
        super().__init__(guard, settings)
        self._pool = pool
        self._runner = runner

    def created(self, connection: Any) -> Age:
        """Notes a new connection."""
        host = peer = None
        with suppress(Exception):  # closed meanwhile
            host, peer = self._runner.endpoint(connection)
        return self.opened(self._pool._loop, host, peer)  # noqa: SLF001 - no public way to any of this

    # --- IdlePool ----------------------------------------------------------------------------------

    def idle(self) -> list[tuple[Any, Age]]:
        """See IdlePool."""
        found = []
        for holder in list(self._idle_holders()):
            state = state_of(holder._con) if holder.is_connected() else None  # noqa: SLF001
            if state is not None and state.age.process == os.getpid():
                found.append((holder, state.age))
        return found

    def open_count(self) -> int:
        """See IdlePool. A holder that is taken may be opening its connection."""
        size: int = self._pool.get_max_size()
        return size - sum(not holder.is_connected() for holder in self._idle_holders())

    def take(self, connection: Any) -> bool:
        """See IdlePool."""
        try:
            self._idle_holders().remove(connection)
        except ValueError:
            return False
        connection._maybe_cancel_inactive_callback()  # noqa: SLF001
        return True

    def put_back(self, connection: Any) -> None:
        """See IdlePool. The left end of asyncpg's stack is used last."""
        if connection.is_connected() and connection._inactive_callback is None:  # noqa: SLF001
            connection._setup_inactive_callback()  # noqa: SLF001
        self._pool._queue.put_nowait(connection)  # noqa: SLF001 - it wakes a waiter
        holders = self._idle_holders()
        if connection in holders:
            holders.remove(connection)
            holders.insert(0, connection)

    async def close(self, connection: Any) -> None:
        """See IdlePool."""
        try:
            if connection.is_connected():
                with suppress(Exception):  # asyncpg has aborted it then
                    await connection._con.close(timeout=_CLOSING)  # noqa: SLF001
        finally:
            self.put_back(connection)

    async def ping(self, connection: Any) -> bool:
        """See IdlePool."""
        if not connection.is_connected():
            return False
        try:
            await connection._con._protocol.query("", None)  # noqa: SLF001
        except Exception:  # noqa: BLE001 - it is evidence already
            return False
        return True

    async def open(self) -> bool:
        """See IdlePool."""
        pool = self._pool
        holder = next((each for each in self._idle_holders() if not each.is_connected()), None)
        if holder is None or pool.is_closing():
            return False
        self._idle_holders().remove(holder)
        try:
            if holder._con is not None:  # noqa: SLF001
                holder.terminate()
            await holder.connect()
        finally:
            self.put_back(holder)
        return True

    def _idle_holders(self) -> Any:
        """The holders in the pool's queue: a list, the next to be used at its end."""
        queue = self._pool._queue  # noqa: SLF001
        return [] if queue is None else queue._queue  # noqa: SLF001
