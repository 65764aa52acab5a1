"""Keeps the idle connections of one pool: closes, pings and opens them as `PoolLife` decides.

Depends on the guard and the housekeeper; must not import a pool or a driver.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from guardrails._guard.attachment import Lease
from guardrails._guard.guard import Guard
from guardrails._pool.addresses import NameWatch, names_in
from guardrails._pool.idle_pool import IdlePool, run_to_end
from guardrails._pool.life import Age, LifeSettings, PoolLife
from guardrails._pool.opener import Opener
from guardrails._runtime.fork import renew_after_fork
from guardrails._runtime.guard_log import log
from guardrails._runtime.housekeeper import run_later
from guardrails._util.names import fields_of
from guardrails.errors import ConfigurationError

__all__ = ["PoolUpkeep"]

_RECHECK = 0.25
"""Seconds until the next check while the circuit, the mode or a full pool forbids what is due."""

_LINE_INTERVAL = 30.0
"""Seconds between two log entries about a pool whose connections are being replaced."""

_AFTER_ERROR = 30.0
"""Seconds until the next check after an error of the upkeep itself."""


class PoolUpkeep(IdlePool):
    """The upkeep of one pool.

    Work starts with the first connection that is opened, so a process that only forks workers opens none.

    Args:
        guard: The pool's guard.
        settings: The settings of the pool's life.

    Attributes:
        life: The rules.
        opener: Opens connections.
        stopped: True once the guard is detached.
        watch: Looks up the names of the pool's servers.
        lease: Limits the connections that may be open, with a fleet's budget.
        joins: Begins to follow a fleet's verdict, in the process that opens connections; None without one.
    """

    lease: Lease | None = None
    joins: Callable[[], None] | None = None

    def __init__(self, guard: Guard, settings: LifeSettings) -> None:
        self.life = PoolLife(settings)
        self.watch = NameWatch()
        self._guard = guard
        self.opener = Opener(self, guard, settings.minimum_idle)
        self._check_task = _WeakTask(self._check)
        self._random = guard.call_settings.gates[-1].core.breaker.random
        self._peers: set[str] = set()
        self._next_line = 0.0
        self._planned = self._shrinking = self.stopped = False
        self._working = threading.Lock()
        renew_after_fork(self)

    # --- for the pool's hooks --------------------------------------------------------------------

    def opened(self, loop: Any = None, host: str | None = None, peer: str | None = None) -> Age:
        """Starts the upkeep, after a connection was opened; returns the age of the connection.

        Args:
            loop: The event loop that it belongs to; None in threads.
            host: The host that was asked for.
            peer: The address of the server.
        """
        if self.joins is not None:
            self.joins()
        if peer is not None and (names := names_in((host,))):
            self.watch.add(names, peer)
            self._peers.add(peer)
        if not self._planned and not self.stopped and (self.life.acts or self.watch.names):
            self._planned = True
            run_later(self._check_task, 0.0 if self.life.settings.minimum_idle else 1.0)
        return Age(time.monotonic(), self._random(), loop, peer)

    def must_close(self, age: Age) -> bool:
        """Notes the return of a connection; True if it must not go back into the pool."""
        now = time.monotonic()
        age.used = now
        return self._acts() and (now >= self.life.end_of(age) or self._is_above_limit())

    def _is_above_limit(self) -> bool:
        self._shrinking = self._shrinking and self.open_count() > self.opener.limit
        return self._shrinking

    def renew(self, gone: frozenset[str] | None = None) -> None:
        """Begins to replace the connections; see `PoolLife.renew`."""
        if not self.stopped and self._acts() and self.life.renew(time.monotonic(), gone):
            now = time.monotonic()
            if now >= self._next_line:  # a server may stay read-only for long
                self._next_line = now + _LINE_INTERVAL
                self._warn("guard %r: the connections of its pool are being replaced")
            self.check_soon()

    def suspect(self) -> None:
        """After a failure, looks the names of the servers up again soon."""
        if self.watch.names and self.watch.look_up_soon(time.monotonic()):
            self.check_soon()

    def resized(self) -> None:
        """Closes the idle connections above the guard's limit, and from now on those that come back."""
        self.life.acts = self._shrinking = True
        self.check_soon()

    def check_soon(self) -> None:
        """Lets the housekeeper check the idle connections."""
        if not self.stopped:
            self._planned = True
            run_later(self._check_task, 0.0)

    def stop(self) -> None:
        """Ends the upkeep."""
        self.stopped = True

    # --- checking --------------------------------------------------------------------------------

    def _check(self) -> float | None:
        """In the housekeeper's thread: starts work if there is some. Returns seconds until the next check."""
        if self.stopped:
            return None
        if self.watch.is_due(time.monotonic()):
            self.watch.look_up(self._address_gone)
        if not self._working.acquire(blocking=False):
            return None  # that work plans the next check when it ends
        try:
            if self.in_threads() and not self._has_work():
                wait = self._next_check()
                self._working.release()
                return wait
            self.start(self._maintain)  # others may be used on their event loop only
        except RuntimeError:  # the loop is closed, or no thread can be started
            self._working.release()
            self._planned = False
        except BaseException:
            self._working.release()
            raise
        return None

    def _address_gone(self, gone: frozenset[str]) -> None:
        if not gone.isdisjoint(self._peers):
            self._peers.difference_update(gone)
            self._warn("guard %r: the name of its server leads to another address")
            self.renew(gone)

    def _warn(self, words: str) -> None:
        log.warning(words, self._guard.name, extra=fields_of(self._guard.name))

    def _acts(self) -> bool:
        return self._guard.mode == "enforce"

    def _closing(self, now: float) -> list[Any]:
        return self.life.to_close(now, self.idle(), self.open_count() - self.opener.limit)

    def _has_work(self) -> bool:
        now = time.monotonic()
        if not self._acts():
            return False
        may_work = self.opener.circuit_allows_work and self.opener.has_room
        return bool(
            self._closing(now)
            or (may_work and (self.life.to_ping(now, self.idle()) or self.opener.missing(now)))
        )

    def _next_check(self) -> float:
        now = time.monotonic()
        wait = min(self.life.next_check(now, self.idle()), self.watch.next_look_up(now))
        # Work that is due and not allowed now is checked again.
        may_work = self._acts() and self.opener.circuit_allows_work and self.opener.has_room
        return wait if may_work else max(wait, _RECHECK)

    # --- working ---------------------------------------------------------------------------------

    async def _maintain(self) -> None:
        ended, least = False, 0.0
        try:
            if self._acts() and not self.stopped:
                await self._close_and_ping()
                await self.opener.refill()
            ended = True
        except Exception:  # noqa: BLE001 - logged; the next check must come all the same
            name = self._guard.name
            log.exception("the upkeep of the pool of guard %r raised", name, extra=fields_of(name))
            ended, least = True, _AFTER_ERROR
        finally:
            self._end_check(least, replan=ended)

    def _end_check(self, least: float = 0.0, *, replan: bool = True) -> None:
        """Ends the work and plans the next check.

        Args:
            least: Minimum seconds until the next check.
            replan: False if an event loop has cancelled the work: the next opening starts the upkeep again.
        """
        self._planned = replan and not self.stopped
        wait = max(least, self._next_check()) if self._planned else 0.0
        self._working.release()
        if self._planned:
            run_later(self._check_task, wait)

    async def _close_and_ping(self) -> None:
        now = time.monotonic()
        for connection in self._closing(now):
            if self.take(connection):
                await self.close(connection)
        if not self.opener.circuit_allows_work:
            return
        ages = dict(self.idle())
        for connection in self.life.to_ping(now, list(ages.items())):
            if self.stopped or not self.opener.take_slot():
                return
            try:
                if self.take(connection) and not await self._answers(connection, ages[connection]):
                    return  # the next check continues: a frozen server takes a timeout for each
            finally:
                self.opener.release_slot()

    async def _answers(self, connection: Any, age: Age) -> bool:
        try:
            if await self.ping(connection):
                age.pinged = time.monotonic()
                self.put_back(connection)
                return True
        except BaseException:
            await self.close(connection)
            raise
        await self.close(connection)
        return False

    # --- warming up ------------------------------------------------------------------------------

    def warm_up(self, seconds: float) -> int:
        """Opens connections until ``minimum_idle`` are idle; see `Guard.warm_up`."""
        if not self.in_threads():
            raise ConfigurationError(
                f"guard {self._guard.name!r}: its connections belong to an event loop; await warm_up_async()"
            )
        return run_to_end(self._warm_up(seconds))

    async def warm_up_async(self, seconds: float) -> int:
        """Opens connections until ``minimum_idle`` are idle, without blocking the event loop."""
        if not self.in_threads():
            return await self._warm_up(seconds)
        import asyncio  # noqa: PLC0415 - its import takes long, and only this needs it

        return await asyncio.to_thread(self.warm_up, seconds)

    async def _warm_up(self, seconds: float) -> int:
        await self.admit()
        return await self.opener.warm_up(seconds)

    async def admit(self) -> None:
        """Gets the pool's first lease before a connection is opened."""
        if self.lease is None:
            return
        if self.in_threads():
            self.lease.admit()
        else:
            await self.lease.admit_async()

    # --- forks -----------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:  # noqa: ARG002
        """See ForkAware."""
        return True

    def unpause(self) -> None:
        """See ForkAware."""

    def reset_in_child(self) -> None:
        """Starts the upkeep of a child process with the first connection that it opens itself."""
        self._working = threading.Lock()
        self._planned = False
        self.watch.forget_look_up()


class _WeakTask:
    """A periodic task that does not keep its object alive."""

    def __init__(self, method: Callable[[], float | None]) -> None:
        self._method = weakref.WeakMethod(method)

    def __call__(self) -> float | None:
        method = self._method()
        return None if method is None else method()
