"""The upkeep of an engine's pool, in threads and on event loops.

Depends on SQLAlchemy's queue pools; must not import the pool's hooks. An idle connection is taken out of the
pool's queue, where it counts as checked out, and put back or dropped as the pool does it.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.queue import Full

from guardrails._guard.guard import Guard
from guardrails._pool.life import Age, LifeSettings
from guardrails._pool.upkeep import PoolUpkeep
from guardrails._pool.upkeep_on_loop import LoopUpkeep

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.pool import Pool

    from guardrails._dbapi.runner import StatementRunner

__all__ = ["AsyncEngineUpkeep", "EngineUpkeep", "kept_idle"]

_AGE = "_guardrails_age"
_CLOSING = 1.0
"""Seconds that the server may take to see an asyncio connection closed."""


def kept_idle(pool: Pool) -> int | None:
    """Returns how many connections a pool keeps idle; None if it keeps none, 0 if it has no limit."""
    return pool.size() if isinstance(pool, QueuePool) else None


class EngineUpkeep(PoolUpkeep):
    """The upkeep of a synchronous engine's pool.

    Args:
        engine: The engine.
        guard: Its guard.
        settings: The settings of the pool's life.
        runner: Opens and pings connections as evidence.
    """

    def __init__(self, engine: Engine, guard: Guard, settings: LifeSettings, runner: StatementRunner) -> None:
        super().__init__(guard, settings)
        self._engine = engine
        self._runner = runner
        self._last_put: tuple[Any, Any] | None = None

    @property
    def _pool(self) -> Any:
        return self._engine.pool

    # --- for the pool's hooks ---------------------------------------------------------------------

    def created(self, record: Any, connection: Any) -> None:
        """Notes a new connection of a record."""
        host = peer = None
        with suppress(Exception):  # closed meanwhile
            host, peer = self._runner.endpoint(connection)
        setattr(record, _AGE, self.opened(self.loop(), host, peer))

    def returned(self, pool: Pool, record: Any) -> bool:
        """Notes the return of a record; True if it was closed and dropped, because its time is over.

        That of one whose pool was disposed of is over: there it would stay open unseen.
        """
        is_old = pool is not self._pool
        if not isinstance(pool, QueuePool) or record.dbapi_connection is None:
            return False
        age = self.age(record)
        if age.process != os.getpid() or not (is_old or self.must_close(age)):
            return False
        self.drop(pool, record)
        return True

    def drop(self, pool: Any, record: Any) -> None:
        """Closes a record that is not in the queue, and makes room for another."""
        try:
            if pool._is_asyncio:  # noqa: SLF001 - its class says so
                record.invalidate()  # this terminates it, within the driver's own time limit
            else:
                record.close()
        finally:
            pool._dec_overflow()  # noqa: SLF001 - as the pool does with one that it has no place for

    # --- PoolUpkeep -------------------------------------------------------------------------------

    def idle(self) -> list[tuple[Any, Age]]:
        """See PoolUpkeep. A record without a connection is dropped from the queue: it is not idle."""
        pool, loop = self._pool, self.loop()
        if not isinstance(pool, QueuePool):
            return []
        with self._mutex(pool):
            records = list(self._items(pool))
        found = []
        for record in records:
            if record.dbapi_connection is None:
                if self.take(record):
                    pool._dec_overflow()  # noqa: SLF001 - see `drop`
                continue
            age = self.age(record)
            if age.process == os.getpid() and age.loop is loop:
                found.append((record, age))
        return found

    def open_count(self) -> int:
        """See PoolUpkeep."""
        pool = self._pool
        return pool.size() + pool._overflow if isinstance(pool, QueuePool) else 0  # noqa: SLF001

    def take(self, connection: Any) -> bool:
        """See PoolUpkeep."""
        pool = self._pool
        with self._mutex(pool):
            try:
                self._items(pool).remove(connection)
            except ValueError:
                return False
        return True

    def put_back(self, connection: Any) -> None:
        """See PoolUpkeep. Also in a stack, the left end of the queue is used last."""
        pool = _pool_of(connection)
        with self._mutex(pool):
            if is_in := self._put(pool, connection):
                items = self._items(pool)
                items.remove(connection)
                items.insert(0, connection)
        if is_in:
            self.disposed()
        else:
            self.drop(pool, connection)

    def _put(self, pool: Any, record: Any) -> bool:
        """Puts a record into its pool's queue; False if it has no place, or the pool was disposed of.

        `disposed` must be called after it.
        """
        if pool is not self._pool:
            return False
        try:
            pool._pool.put(record, False)  # noqa: SLF001 - the pool's own way, which wakes a waiter
        except Full:
            return False
        self._last_put = pool, record
        return True

    async def close(self, connection: Any) -> None:
        """See PoolUpkeep."""
        self.drop(_pool_of(connection), connection)

    async def ping(self, connection: Any) -> bool:
        """See PoolUpkeep."""
        return self._ping(connection)

    def _ping(self, record: Any) -> bool:
        try:
            return bool(self._engine.dialect.do_ping(record.dbapi_connection))
        except Exception:  # noqa: BLE001 - it is evidence already
            return False

    async def open(self) -> bool:
        """See PoolUpkeep."""
        await self.admit()
        return self._open()

    def _open(self) -> bool:
        pool = self._pool
        if not pool._inc_overflow():  # noqa: SLF001 - the pool's own way to make room
            return False
        try:
            record = pool._create_connection()  # noqa: SLF001 - likewise, to open one
        except BaseException as error:
            pool._dec_overflow()  # noqa: SLF001
            with suppress(Exception):  # the error of the opening is the cause
                self._runner.end_set_up(error)
            raise
        try:
            self._runner.end_set_up(connection=record.dbapi_connection)
            record.fresh = False  # so that a pre-ping is not left out after hours in the pool
            if not self.stopped and self._put(pool, record):
                self.disposed()
                return pool is self._pool
        except BaseException:
            self.drop(pool, record)
            raise
        self.drop(pool, record)
        return False

    def disposed(self) -> None:
        """Closes a connection that was put into a pool while that was being disposed of.

        It is called after each connection put and after each disposal, so that one of them finds it.
        """
        pool, record = self._last_put or (self._pool, None)
        if pool is self._pool:
            return
        self._last_put = None
        with self._mutex(pool), suppress(ValueError):
            self._items(pool).remove(record)
            if self.age(record).process == os.getpid():  # otherwise it is the parent's
                self.drop(pool, record)

    def age(self, record: Any) -> Age:
        """Returns the times of a record's connection."""
        age: Age | None = getattr(record, _AGE, None)
        if age is None:  # it is older than the guard
            age = Age(time.monotonic(), 0.5, self.loop())
            age.opened -= max(0.0, time.time() - record.starttime)
            setattr(record, _AGE, age)
        return age

    @staticmethod
    def _mutex(pool: Any) -> Any:
        return pool._pool.mutex  # noqa: SLF001 - reentrant

    @staticmethod
    def _items(pool: Any) -> Any:
        return pool._pool.queue  # noqa: SLF001


def _pool_of(record: Any) -> Any:
    """Returns the pool that a record belongs to, which is not the engine's after a disposal."""
    return record._ConnectionRecord__pool  # noqa: SLF001 - there is no public way


class AsyncEngineUpkeep(LoopUpkeep, EngineUpkeep):
    """The upkeep of an asyncio engine's pool. It runs on the event loop of the connections."""

    async def close(self, connection: Any) -> None:
        """See PoolUpkeep."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await greenlet_spawn(self.drop, _pool_of(connection), connection)

    async def ping(self, connection: Any) -> bool:
        """See PoolUpkeep."""
        return bool(await greenlet_spawn(self._ping, connection))

    async def open(self) -> bool:
        """See PoolUpkeep."""
        await self.admit()
        return bool(await greenlet_spawn(self._open))

    @staticmethod
    def _mutex(pool: Any) -> Any:  # noqa: ARG004 - one thread touches it
        return nullcontext()

    @staticmethod
    def _items(pool: Any) -> Any:
        return pool._pool._queue._queue  # noqa: SLF001 - asyncio's queue, and the deque or list in it
