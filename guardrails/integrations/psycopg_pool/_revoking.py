"""Takes psycopg's connections back that are held idle for longer than ``max_idle_hold``.

Depends on psycopg's connections; must not import a pool. The holder keeps a closed connection, on which all
work fails; its pool gets it back, and opens another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from guardrails._dbapi.drivers.background import Background
from guardrails._dbapi.runner_on_loop import LoopRunner
from guardrails._dbapi.watchdog import GRACE
from guardrails._pool.frames import lines
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.idle_hold import IdleHold
from guardrails._pool.idle_hold_limit import IdleHoldLimit
from guardrails._runtime.holding import holding, on_enter
from guardrails.errors import ConnectionRevokedError
from guardrails.integrations.psycopg_pool._work import PoolCheckout, WorkState

__all__ = ["Revocation"]


class Revocation:
    """The limit for the idle holds of one pool's connections.

    Args:
        registry: The holders of the connections.
        seconds: The limit.
        runner: Closes the connections.
        leave: Releases the slots of a checkout.
    """

    def __init__(
        self,
        registry: HolderRegistry,
        seconds: float,
        runner: LoopRunner,
        leave: Callable[[Any, PoolCheckout], None],
    ) -> None:
        self._registry = registry
        self._runner = runner
        self._leave = leave
        self._background = Background(lambda _: None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limit: IdleHoldLimit[PoolCheckout] = IdleHoldLimit(
            registry.guard, seconds, self._holds, self._due, lambda out: (lines(out.site), out.request)
        )
        on_enter(self)

    def begin(self, checkout: PoolCheckout, loop: asyncio.AbstractEventLoop | None) -> None:
        """Gives a new checkout its hold; its caller has the connection."""
        self._loop = loop
        now = self._limit.now()
        checkout.hold = IdleHold(now)
        checkout.hold.hand_out(now)
        if not self._limit.watching:
            self._limit.watch()

    def cover(self, block: holding) -> None:
        """See `on_enter`."""
        caller = self._registry.caller()
        for hold, checkout in self._holds():
            if checkout.caller == caller:
                hold.cover(block)

    def _holds(self) -> Iterable[tuple[IdleHold, PoolCheckout]]:
        out = list(self._registry.out.values())
        return [(checkout.hold, checkout) for checkout in out if checkout.hold is not None]

    def _due(self, checkout: PoolCheckout) -> None:
        """Takes a connection back, on its event loop if it has one. Called by the housekeeper's thread."""
        if self._loop is None:
            self._take_back(checkout)
            return
        with suppress(RuntimeError):  # the loop is closed: no code of it runs any more
            self._loop.call_soon_threadsafe(self._take_back, checkout)

    def _take_back(self, checkout: PoolCheckout) -> None:
        connection, hold = checkout.connection(), checkout.hold
        if connection is None or hold is None:
            return  # returned, or dropped
        now, where, route = self._limit.now(), lines(checkout.site), checkout.route
        seconds = hold.idle_for(now)
        arguments = (self._registry.guard.name, seconds, where, route)
        check_later: Callable[[], object] = bool

        def cut() -> bool:
            nonlocal check_later
            if not _take_lock(connection):  # work that the guard cannot see
                return False
            try:
                check_later = self._identify(connection, seconds)
                self._runner.kill(connection)  # first: a server that does not answer must not delay the close
                self._runner.retire(connection)
            finally:
                _release_lock(connection)
            return True

        if hold.take_back(now, self._limit.seconds, lambda: ConnectionRevokedError(*arguments), cut):
            checkout.reported = False
            self._return_to_pool(connection)
            self._leave(connection, checkout)
            self._registry.figures.invalidated()
            connection._guardrails.checkout = checkout  # noqa: SLF001 - all later work on it is refused
            check_later()
            self._limit.log(where, route, seconds)

    def _return_to_pool(self, connection: Any) -> None:
        """Gives a closed connection to its pool, which opens another one."""
        pool = connection._pool  # noqa: SLF001 - psycopg_pool has no public way
        plain: Any = type(pool).__bases__[0]
        with suppress(Exception):  # the pool was closed meanwhile
            if self._loop is None:
                plain.putconn(pool, connection)
            else:
                self._background.run(_then_forget(plain.putconn(pool, connection), connection), GRACE)
                return
        connection._pool = None  # noqa: SLF001 - it would open another connection for each return

    def _identify(self, connection: Any, idle: float) -> Callable[[], object]:
        """Returns what checks later that the server has ended the session of a connection."""
        sessions = self._registry.revoked_sessions
        if sessions is not None:
            with suppress(Exception):  # it is broken
                state: WorkState = connection._guardrails  # noqa: SLF001
                return sessions.identify(connection, idle, *state.ages)
        return bool


async def _then_forget(putting: Any, connection: Any) -> None:
    try:
        await putting
    finally:
        connection._pool = None  # noqa: SLF001 - as in `_return_to_pool`


def _take_lock(connection: Any) -> bool:
    """Takes the lock that psycopg holds while it works; False while it does."""
    lock = connection.lock
    if isinstance(lock, asyncio.Lock):
        return not lock.locked()
    return bool(lock.acquire(blocking=False))


def _release_lock(connection: Any) -> None:
    if not isinstance(connection.lock, asyncio.Lock):
        connection.lock.release()
