"""Takes connections back that are held idle for longer than ``max_idle_hold``.

Depends on SQLAlchemy's pool records and proxied connections; must not import statements.

The holder keeps its proxy, which gets a connection on which all work fails, and the pool's record of it,
which gets none. A replacement of the record takes the connection over and returns to the pool in the usual
way. The old record is never handed out again, so nothing that the holder does can reach the next user.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import AssertionPool, Pool, SingletonThreadPool
from sqlalchemy.util import greenlet_spawn

from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._dbapi.drivers.background import Background
from guardrails._dbapi.revoked import RevokedConnection
from guardrails._dbapi.watchdog import GRACE
from guardrails._pool.frames import lines
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.idle_hold import IdleHold
from guardrails._pool.idle_hold_limit import IdleHoldLimit
from guardrails._runtime.guard_log import log
from guardrails._runtime.holding import holding, on_enter
from guardrails._runtime.threads import daemon
from guardrails.errors import ConfigurationError, ConnectionRevokedError
from guardrails.integrations.sqlalchemy._proxied import revoked_connection_of, set_dbapi_connection

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

    from guardrails._dbapi.runner import StatementRunner
    from guardrails._pool.life import Age
    from guardrails.integrations.sqlalchemy._upkeep import EngineUpkeep

__all__ = ["Revocation", "around_rollback_to_savepoint"]

_Out = tuple[Any, DBAPICheckout]
"""A pool's record, and the latest checkout of its connection."""


class Revocation:
    """The limit for the idle holds of one engine's connections.

    Args:
        registry: The holders of the connections.
        seconds: The limit.
        error: The class of the error of a revoked connection.
        is_async: True if the connections belong to event loops.
    """

    def __init__(
        self, registry: HolderRegistry, seconds: float, error: type[ConnectionRevokedError], *, is_async: bool
    ) -> None:
        self._registry = registry
        self._error = error
        self._is_async = is_async
        self._runner: StatementRunner
        self._age: Callable[[Any], Age]
        self._out: MutableMapping[Any, DBAPICheckout] = registry.out
        self._left_behind: weakref.WeakSet[ConnectionPoolEntry] = weakref.WeakSet()
        self._closing = Background(_log_failure)
        self._limit: IdleHoldLimit[_Out] = IdleHoldLimit(
            registry.guard, seconds, self._holds, self._due, lambda out: (lines(out[1].site), out[1].request)
        )
        on_enter(self)

    def attach(self, pool: Pool, runner: StatementRunner, upkeep: EngineUpkeep) -> None:
        """Begins to serve an engine.

        Args:
            pool: Its pool.
            runner: Shuts the sockets of its connections.
            upkeep: Knows when they were opened.

        Raises:
            ConfigurationError: The pool's connections cannot be taken from their threads.
        """
        if isinstance(pool, SingletonThreadPool):
            raise ConfigurationError(
                f"guard {self._registry.guard.name!r}: max_idle_hold must be None with a "
                "SingletonThreadPool, whose connections belong to their threads"
            )
        self._runner, self._age = runner, upkeep.age

    # --- one checkout --------------------------------------------------------------------------

    def take(self, checkout: DBAPICheckout, base: type[Pool], pool: Pool) -> ConnectionPoolEntry:
        """Takes a record from the pool for a checkout, and gives the checkout its hold.

        A StaticPool hands out one connection several times. Then all its checkouts have one hold.
        """
        while True:
            record = base._do_get(pool)  # noqa: SLF001 - the pools' own hook
            if record in self._left_behind:
                continue  # revoked since the pool has looked at it
            below = self._out.get(record)
            try:
                shared = None if below is None or below.hold is None else below.hold.share()
            except ConnectionRevokedError:
                continue
            checkout.hold = IdleHold(self._limit.now()) if shared is None else shared
            checkout.occupies = True
            checkout.loop = asyncio.get_running_loop() if self._is_async else None
            if not self._limit.watching:
                self._limit.watch()
            return record

    def leave(self, checkout: DBAPICheckout) -> None:
        """Lets the connection count as idle: a new holder has it, or one of several has returned it."""
        if checkout.hold is not None and checkout.occupies:
            checkout.occupies = False
            checkout.hold.append(self._limit.now())

    def claim(self, fairy: Any) -> bool:
        """Begins the return of a proxied connection; False if it was taken back before."""
        top = self._out.get(fairy._connection_record)  # noqa: SLF001 - no public way
        own = next((each for each in _chain(top) if each.is_of(fairy)), top)
        if own is None or own.hold is None:
            return revoked_connection_of(fairy) is None
        if not own.occupies:
            try:
                own.hold.begin()
            except ConnectionRevokedError:
                return False
            own.occupies = True
        return True

    def cover(self, block: holding) -> None:
        """See `on_enter`."""
        caller = self._registry.caller()
        for checkout in list(self._out.values()):
            if checkout.hold is not None and checkout.caller == caller:
                checkout.hold.cover(block)

    # --- idle for too long ---------------------------------------------------------------------

    def _holds(self) -> Iterable[tuple[IdleHold, _Out]]:
        out = list(self._out.items())
        return [(checkout.hold, (record, checkout)) for record, checkout in out if checkout.hold is not None]

    def _due(self, out: _Out) -> None:
        """Takes a connection back, in the thread to which it belongs. Called by the housekeeper's thread."""
        loop: asyncio.AbstractEventLoop | None = out[1].loop
        if loop is None:
            self._take_back(*out, self._end)
            return
        try:
            loop.call_soon_threadsafe(self._take_back, *out, self._end_on_loop)
        except RuntimeError:  # the loop is closed: no code of it runs any more
            self._take_back(*out, self._end_without_loop)

    def _take_back(self, record: Any, checkout: DBAPICheckout, end: Callable[..., None]) -> None:
        holders = list(_chain(checkout))
        hold, now, where = checkout.hold, self._limit.now(), lines(checkout.site)
        fairies = [None if each.proxy is None else each.proxy() for each in holders]
        if hold is None or None in fairies:
            return  # being set up, or dropped
        seconds, route, pool = hold.idle_for(now), checkout.route, checkout.pool
        arguments = (self._registry.guard.name, seconds, where, route)
        stub = RevokedConnection(lambda: self._error(*arguments))
        # Two records: one gives the place back at once, the other has the connection until it is closed.
        replacement, closing = (type(record)(pool, connect=False) for _ in range(2))
        check_later: Callable[[], object] = bool

        def cut() -> bool:
            nonlocal check_later
            if self._out.get(record) is not checkout:
                return False
            check_later = self._identify(record, seconds)
            _move(record, replacement, closing)
            if isinstance(pool, AssertionPool):
                pool._conn = replacement  # noqa: SLF001 - the only record that it takes back
            for fairy in fairies:
                set_dbapi_connection(fairy, stub)
            self._left_behind.add(record)
            self._out[replacement] = self._out.pop(record)  # last: who finds no checkout looks at the proxy
            return True

        if hold.take_back(now, self._limit.seconds, stub.error, cut):
            for each in holders:
                each.reported, each.proxy, each.finalizer = False, None, None
            try:
                for _ in holders:
                    replacement.checkin(_fairy_was_created=False)
            finally:
                # Its socket is shut first, so that a server that does not answer delays nothing.
                self._runner.kill(closing.dbapi_connection)
                end(closing, stub.error())
                check_later()
                self._limit.log(where, route, seconds)

    def _identify(self, record: Any, idle: float) -> Callable[[], object]:
        """Returns what checks later that the server has ended the session of a record's connection."""
        sessions = self._registry.revoked_sessions
        if sessions is not None:
            with suppress(Exception):  # it is broken
                age = time.monotonic() - self._age(record).opened
                ages = age, max(age, time.time() - record.starttime)
                return sessions.identify(record.driver_connection, idle, *ages)
        return bool

    def _end(self, record: Any, error: BaseException) -> None:
        # In a thread of its own: a driver that is not known, or a listener, may wait for the server.
        with suppress(RuntimeError):  # no new thread can be started while the interpreter shuts down
            daemon("guardrails-close", record.invalidate, error).start()

    def _end_on_loop(self, record: Any, error: BaseException) -> None:
        self._closing.run(self._end_in_task(record, error), GRACE)

    async def _end_in_task(self, record: Any, error: BaseException) -> None:
        try:
            await greenlet_spawn(record.invalidate, error)
        finally:
            record.dbapi_connection = None

    def _end_without_loop(self, record: Any, error: BaseException) -> None:  # noqa: ARG002 - no code runs
        self._runner.retire(record.dbapi_connection)
        record.dbapi_connection = None


def around_rollback_to_savepoint(original: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a block unwind quietly if its connection was taken back, which has rolled all of it back."""

    def rollback(*args: Any) -> Any:
        try:
            return original(*args)
        except ConnectionRevokedError:
            return None

    return rollback


def _chain(checkout: DBAPICheckout | None) -> Iterator[DBAPICheckout]:
    """The checkouts of one connection, the latest first."""
    while checkout is not None:
        yield checkout
        checkout = checkout.below


def _move(record: Any, replacement: Any, closing: Any) -> None:
    """Moves a record's connection to the one that closes it, and what belongs to its place to both."""
    for name in ("info", "record_info"):
        if name in vars(record):
            vars(closing)[name] = vars(record).pop(name)
    if "record_info" in vars(closing):
        vars(replacement)["record_info"] = vars(closing)["record_info"]
    closing.starttime, closing.dbapi_connection = record.starttime, record.dbapi_connection
    record.dbapi_connection = record.fairy_ref = None


def _log_failure(error: BaseException) -> None:
    log.debug("a connection that was taken back was not closed in order: %s", type(error).__name__)
