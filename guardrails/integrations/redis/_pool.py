"""Admits checkouts: replaces the class of a live pool by one whose checkouts pass the guard.

Depends on redis-py's pools; must not inspect commands. The pool object stays the same, so existing
pipelines, locks, scripts and subscribers use it. All connections, existing and new, get guarded classes, too.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import redis.asyncio

from guardrails._guard.guard import Guard
from guardrails._pool.life import LifeSettings
from guardrails.errors import ConfigurationError
from guardrails.fleet._pool_lease import PoolLease
from guardrails.integrations.redis._async_connection import GuardedAsyncConnection
from guardrails.integrations.redis._caching import CachedConnection
from guardrails.integrations.redis._checkout import RedisCheckout
from guardrails.integrations.redis._commands import CommandRunner
from guardrails.integrations.redis._connection import GuardedConnection
from guardrails.integrations.redis._guarded_connection import (
    Guarded,
    derive,
    derived,
    is_guarded,
    members,
)
from guardrails.integrations.redis._local_cache import LocalCache
from guardrails.integrations.redis._pool_connections import (
    checked_out,
    idle,
    open_connections,
    unwrapped,
)
from guardrails.integrations.redis._pool_hooks import async_getter, async_releaser, getter, releaser
from guardrails.integrations.redis._reserve import AsyncReserve, Reserve
from guardrails.integrations.redis._sentinel import Discovery, restore_pool
from guardrails.integrations.redis._single_connection import SingleConnection
from guardrails.integrations.redis._socket import WatchedSocket
from guardrails.integrations.redis._upkeep import AsyncClientUpkeep, ClientUpkeep

__all__ = ["ClientAdmission", "guard_of"]


def guard_of(pool: object) -> Guard | None:
    """Returns the guard of a pool, or None."""
    guard: Guard | None = getattr(pool, "_guardrails", None)
    return guard


class ClientAdmission:
    """Takes slots for checkouts, and releases each exactly once.

    Args:
        guard: The client's guard.
        pool: The client's pool.
        life: The settings of the pool's life.
        leak_after: Seconds after which a connection on which nothing runs is reported; None is never.

    Attributes:
        registry: The holders of the pool's connections.
        upkeep: The upkeep of the pool's idle connections.
        work: Makes the checkouts and records the commands.
        lease: The pool's part of a fleet's budget; None without one. Set before `attach`.
        cache: The replies that the pool's connections keep; None without client-side caching.
    """

    _behaviours: tuple[type[Guarded], type[Guarded]] = (GuardedConnection, GuardedAsyncConnection)

    def __init__(self, guard: Guard, pool: Any, life: LifeSettings, leak_after: float | None) -> None:
        self._guard = guard
        self._gate = guard.call_settings.gates[-1]
        self._pool = pool
        self.lease: PoolLease | None = None
        self._is_async = isinstance(pool, redis.asyncio.ConnectionPool)
        self.work = self._runner(leak_after)
        self.work.checkouts.figures.connections = lambda: open_connections(pool)
        self.registry = self.work.checkouts.registry
        self._classes: dict[type, type] = {}
        self._discovery = Discovery(pool, self.work)
        self._single: SingleConnection | None = None
        cache = getattr(pool, "cache", None)
        self.cache = None if cache is None else LocalCache.of(cache)
        upkeep = AsyncClientUpkeep if self._is_async else ClientUpkeep
        self.upkeep = upkeep(pool, guard, life, self.work)
        self.work.created, classifier = self.upkeep.created, self.work.classifier
        classifier.moved, classifier.suspect = self.upkeep.renew, self.upkeep.suspect
        classifier.for_replica = not getattr(pool, "is_master", True)  # of a Sentinel's pool

    def attach(self) -> None:
        """Replaces the classes of the pool and of its connections.

        ``connection_class`` stays; a new connection gets its guarded class after it was made.

        Raises:
            ConfigurationError: A class cannot be subclassed.
        """
        pool = self._pool
        base = type(pool)
        restore_pool(pool)
        try:
            guarded = derived(base, {"_guardrails": self._guard, **self._hooks()})
            self._guarded(pool.connection_class)
            for connection in idle(pool):
                self.take_over(connection)
            pool.__class__ = guarded
            self._discovery.attach()
            if self.cache is not None:
                self.cache.flush()  # of replies whose invalidations redis-py may have read in part
        except TypeError as error:
            self.detach()
            raise ConfigurationError(f"protect: a pool of class {base.__name__} cannot be guarded") from error
        # A connection that is out already has no slot; its return releases an adopted one.
        self._gate.step(self._gate.core.adopt, len(checked_out(pool)))

    def adopt(self, connection: Any) -> None:
        """Guards the connection of a client with ``single_connection_client``."""
        self.take_over(connection)
        connection.checkout = self.work.adopt()
        if not self._is_async:  # an event loop does not survive a fork
            self._single = SingleConnection(connection)

    def detach(self) -> None:
        """Restores the classes. Connections that are out return to the pool without the guard."""
        pool, self._single = self._pool, None
        self.upkeep.stop()
        self.work.created = None
        self._discovery.detach()
        if "_guardrails" in vars(type(pool)):
            pool.__class__ = type(pool).__bases__[0]
        for connection in [*idle(pool), *checked_out(pool)]:
            for each in {unwrapped(connection), connection}:
                if is_guarded(each):
                    each.__class__ = type(each).plain
        if self.cache is not None:
            self.cache.flush()

    def _runner(self, leak_after: float | None) -> CommandRunner:
        return CommandRunner(self._guard, leak_after, is_async=self._is_async)

    def _hooks(self) -> dict[str, Any]:
        """The methods of the guarded class of the pool."""
        base, take_over = type(self._pool), self.take_over
        get, release = (async_getter, async_releaser) if self._is_async else (getter, releaser)

        def make_connection(self: Any) -> Any:
            connection = base.make_connection(self)
            take_over(connection)
            return connection

        hooks = {"get_connection": get(self, base), "release": release(self, base)}
        return hooks | {"make_connection": make_connection}

    # --- for the hooks -------------------------------------------------------------------------

    @cached_property
    def reserve(self) -> Any:
        """The connections for releases that the guard refuses."""
        return (AsyncReserve if self._is_async else Reserve)(self._pool, self.work, self.take_over)

    def take_over(self, connection: Any) -> None:
        """Guards a connection."""
        if is_guarded(connection):
            if connection.work is self.work:
                return
            connection.__class__ = type(connection).plain  # of a sentinel that now gets a guard
        inner = unwrapped(connection)
        if inner is not connection:
            if connection.is_connected:  # the server may have refused to tell it what changes
                connection.disconnect()
            self.take_over(inner)
            connection.__class__ = self._caching(type(connection))
            return
        connection.__class__ = self._guarded(type(connection))
        connection.guard()

    def _guarded(self, plain: type) -> type:
        if plain not in self._classes:
            if not plain.__dictoffset__:
                raise TypeError(f"a {plain.__name__} has no room for a checkout")
            behaviour, more = self._behaviours[self._is_async], dict[str, Any]()
            if self.cache is not None:
                more["disconnect"] = self.cache.emptied_by(members(behaviour)["disconnect"])
                more["socket_class"] = WatchedSocket
            self._classes[plain] = derive(plain, behaviour, self.work, **more)
        return self._classes[plain]

    def _caching(self, plain: type) -> type:
        """The class of the connections with a cache, which have a guarded one inside."""
        if plain not in self._classes:
            own = {"plain": plain, "local": self.cache}
            self._classes[plain] = derived(plain, members(CachedConnection) | own)
        return self._classes[plain]

    def adopt_late(self, connection: Any) -> RedisCheckout:
        """Guards a connection that returns from a checkout older than the guard; returns that checkout."""
        self.take_over(connection)
        return self.work.adopt()
