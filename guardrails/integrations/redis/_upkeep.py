"""The upkeep of a Redis client's pool, in threads and on event loops.

Depends on redis-py's pools and the client's work; must not import the pool's hooks. redis-py keeps the object
of a closed connection in its pool and opens it again, so closing takes nothing out of the pool. The pools are
stacks: a closed connection goes to their bottom.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import redis
from redis.connection import BlockingConnectionPool

from guardrails._guard.guard import Guard
from guardrails._pool.life import Age, LifeSettings
from guardrails._pool.upkeep import PoolUpkeep
from guardrails._pool.upkeep_on_loop import LoopUpkeep
from guardrails.integrations.redis._checkout import current_checkout
from guardrails.integrations.redis._commands import CommandRunner
from guardrails.integrations.redis._pool_connections import unwrapped

__all__ = ["AsyncClientUpkeep", "ClientUpkeep"]

_AGE = "_guardrails_age"


class ClientUpkeep(PoolUpkeep):
    """The upkeep of a synchronous client's pool.

    Args:
        pool: The pool.
        guard: The client's guard.
        settings: The settings of the pool's life.
        work: Makes the checkouts.
    """

    def __init__(self, pool: Any, guard: Guard, settings: LifeSettings, work: CommandRunner) -> None:
        super().__init__(guard, settings)
        self._pool = pool
        self._work = work
        self._blocking = isinstance(pool, BlockingConnectionPool)

    # --- for the hooks ----------------------------------------------------------------------------

    def created(self, connection: Any, stream: Any) -> None:
        """Notes that a connection was opened, with its socket or stream."""
        host = peer = None
        with suppress(Exception):  # fakeredis has no address
            host, peer = connection.host, self._peer(stream)
        setattr(connection, _AGE, self.opened(self.loop(), host, peer))

    def returned(self, connection: Any) -> bool:
        """Notes the return of a connection; True if it must be closed, because its time is over."""
        return self._is_open(connection) and self.must_close(self._age(connection))

    def sink(self, connection: Any) -> None:
        """Moves a closed connection to the bottom of the pool."""
        with self._mutex():
            items = self._items()
            if connection in items:
                items.remove(connection)
                items.insert(self._bottom(items), connection)

    # --- PoolUpkeep -------------------------------------------------------------------------------

    def idle(self) -> list[tuple[Any, Age]]:
        """See PoolUpkeep."""
        process, loop = os.getpid(), self.loop()
        with self._mutex():
            connections = [each for each in self._items() if each is not None]
        ages = [(each, self._age(each)) for each in connections if self._is_open(each)]
        return [(each, age) for each, age in ages if age.process == process and age.loop is loop]

    def open_count(self) -> int:
        """See PoolUpkeep."""
        if not self._blocking:
            return len(self._pool._in_use_connections) + len(self.idle())  # noqa: SLF001 - no public getter
        return sum(1 for each in list(self._pool._connections) if self._is_open(each))  # noqa: SLF001

    def take(self, connection: Any) -> bool:
        """See PoolUpkeep."""
        with self._mutex():
            if connection not in self._items():
                return False
            self._items().remove(connection)
            if not self._blocking:
                self._pool._in_use_connections.add(connection)  # noqa: SLF001
        return True

    def put_back(self, connection: Any) -> None:
        """See PoolUpkeep."""
        if self._blocking:
            self._pool.pool.put_nowait(connection)  # this wakes a thread that waits
            self.sink(connection)
            return
        with self._mutex():
            self._pool._in_use_connections.discard(connection)  # noqa: SLF001
            self._items().insert(0, connection)

    async def close(self, connection: Any) -> None:
        """See PoolUpkeep."""
        await self._disconnect(connection)
        self.put_back(connection)

    async def ping(self, connection: Any) -> bool:
        """See PoolUpkeep."""
        with self._checkout(connection):
            try:
                await self._ping(connection)
            except Exception:  # noqa: BLE001 - it is evidence already
                return False
        return True

    async def open(self) -> bool:
        """See PoolUpkeep."""
        await self.admit()
        connection = self._take_closed()
        if connection is None:
            return False
        try:
            with self._checkout(connection):
                await self._connect(connection)
            if self.stopped:
                await self._disconnect(connection)
        finally:
            self.put_back(connection)
        return not self.stopped

    # --- the calls of redis-py: the asyncio flavour awaits them ------------------------------------

    async def _connect(self, connection: Any) -> None:
        connection.connect()

    async def _disconnect(self, connection: Any) -> None:
        connection.disconnect()

    async def _ping(self, connection: Any) -> None:
        def ping() -> None:
            connection.send_command("PING", check_health=False)
            connection.read_response()

        connection.call_with_retry(ping, lambda *_: connection.disconnect())

    # --- its parts --------------------------------------------------------------------------------

    def _take_closed(self) -> Any:
        """Takes a closed connection out of the pool, or a new one; None if all are open or out."""
        pool = self._pool
        with self._mutex():
            items = self._items()
            closed = next((each for each in items if each is not None and not self._is_open(each)), None)
            if closed is not None:
                items.remove(closed)
            elif self._blocking:
                if None not in items:
                    return None
                items.remove(None)
            if not self._blocking:
                if closed is None:
                    try:
                        closed = pool.make_connection()
                    except redis.MaxConnectionsError:
                        return None
                pool._in_use_connections.add(closed)  # noqa: SLF001
        return pool.make_connection() if closed is None else closed

    @contextmanager
    def _checkout(self, connection: Any) -> Iterator[None]:
        """Gives a connection a checkout without a slot for the work in the block."""
        checkout = connection.checkout = self._work.for_upkeep()
        token = current_checkout.set(None)
        try:
            yield
        finally:
            current_checkout.reset(token)
            connection.checkout = None
            checkout.slots.clear()
            checkout.release_slots()

    def _age(self, connection: Any) -> Age:
        noted = vars(unwrapped(connection))
        age: Age | None = noted.get(_AGE)
        if age is None:  # it is older than the guard
            age = noted[_AGE] = Age(time.monotonic(), 0.5, self.loop())
        return age

    def _mutex(self) -> Any:
        return self._pool.pool.mutex if self._blocking else self._pool._lock  # noqa: SLF001

    def _items(self) -> Any:
        return self._pool.pool.queue if self._blocking else self._pool._available_connections  # noqa: SLF001

    def _bottom(self, items: Any) -> int:
        """The lowest place of the stack; in a blocking pool, above the places of connections not yet made."""
        return sum(1 for each in items if each is None)

    @staticmethod
    def _is_open(connection: Any) -> bool:
        return bool(connection.is_connected)

    @staticmethod
    def _peer(stream: Any) -> str | None:
        peer = stream.getpeername()
        return str(peer[0]) if isinstance(peer, tuple) else None


class AsyncClientUpkeep(LoopUpkeep, ClientUpkeep):
    """The upkeep of an asyncio client's pool. It runs on the event loop of the connections."""

    def put_back(self, connection: Any) -> None:
        """See PoolUpkeep."""
        super().put_back(connection)
        condition = getattr(self._pool, "_condition", None)
        if condition is not None:  # of a blocking pool
            self._waking = asyncio.ensure_future(_wake(condition))

    async def _connect(self, connection: Any) -> None:
        await connection.connect()

    async def _disconnect(self, connection: Any) -> None:
        await connection.disconnect(nowait=True)

    async def _ping(self, connection: Any) -> None:
        async def ping() -> None:
            await connection.send_command("PING", check_health=False)
            await connection.read_response()

        await connection.call_with_retry(ping, lambda *_: connection.disconnect(nowait=True))

    def _take_closed(self) -> Any:
        pool = self._pool
        if len(pool._available_connections) + len(pool._in_use_connections) < pool.max_connections or any(  # noqa: SLF001
            not self._is_open(each)
            for each in pool._available_connections  # noqa: SLF001
        ):
            return super()._take_closed()
        return None

    def _mutex(self) -> Any:
        return nullcontext()  # one thread touches the pool, and nothing here waits inside

    @staticmethod
    def _peer(stream: Any) -> str | None:
        peer = stream.get_extra_info("peername")
        return peer[0] if isinstance(peer, tuple) else None


async def _wake(condition: asyncio.Condition) -> None:
    async with condition:
        condition.notify()
