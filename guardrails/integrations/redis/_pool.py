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
from guardrails.errors import ConfigurationError, RejectedError
from guardrails.fleet._pool_lease import PoolLease
from guardrails.integrations.redis._async_connection import GuardedAsyncConnection
from guardrails.integrations.redis._checkout import RedisCheckout, current_checkout
from guardrails.integrations.redis._commands import CommandRunner, prefer_block_error
from guardrails.integrations.redis._connection import GuardedConnection
from guardrails.integrations.redis._guarded_connection import Guarded, derive, derived, is_guarded
from guardrails.integrations.redis._pool_connections import (
    checked_out,
    idle,
    open_connections,
    without_wrapper,
)
from guardrails.integrations.redis._releases import is_release
from guardrails.integrations.redis._reserve import AsyncReserve, Reserve
from guardrails.integrations.redis._sentinel import Discovery, restore_pool
from guardrails.integrations.redis._single_connection import SingleConnection
from guardrails.integrations.redis._upkeep import AsyncClientUpkeep, ClientUpkeep

__all__ = ["ClientAdmission", "guard_of"]


def guard_of(pool: object) -> Guard | None:
    """Returns the guard of a pool, or None."""
    guard: Guard | None = getattr(pool, "_guardrails", None)
    return guard


class ClientAdmission:
    """Takes slots for checkouts, and gives each back exactly once.

    Args:
        guard: The client's guard.
        pool: The client's pool.
        life: The settings of the pool's life.
        leak_after: Seconds after which a connection on which nothing runs is reported; None is never.

    Attributes:
        registry: The holders of the pool's connections.
        upkeep: The upkeep of the pool's idle connections.
        lease: The pool's part of a fleet's budget; None without one. Set before `attach`.
    """

    _behaviours: tuple[type[Guarded], type[Guarded]] = (GuardedConnection, GuardedAsyncConnection)

    def __init__(self, guard: Guard, pool: Any, life: LifeSettings, leak_after: float | None) -> None:
        self._guard = guard
        self._gate = guard.call_settings.gates[-1]
        self._pool = pool
        self.lease: PoolLease | None = None
        self._is_async = isinstance(pool, redis.asyncio.ConnectionPool)
        self._work = self._runner(leak_after)
        self._work.checkouts.figures.connections = lambda: open_connections(pool)
        self.registry = self._work.checkouts.registry
        self._classes: dict[type, type] = {}
        self._discovery = Discovery(pool, self._work)
        self._single: SingleConnection | None = None
        upkeep = AsyncClientUpkeep if self._is_async else ClientUpkeep
        self.upkeep = upkeep(pool, guard, life, self._work)
        self._work.created, judge = self.upkeep.created, self._work.judge
        judge.moved, judge.suspect = self.upkeep.renew, self.upkeep.suspect
        judge.for_replica = not getattr(pool, "is_master", True)  # of a Sentinel's pool

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
        except TypeError as error:
            self.detach()
            raise ConfigurationError(f"protect: a pool of class {base.__name__} cannot be guarded") from error
        # A connection that is out already has no slot; its return gives back an adopted one.
        self._gate.step(self._gate.core.adopt, len(checked_out(pool)))

    def adopt(self, connection: Any) -> None:
        """Guards the connection of a client with ``single_connection_client``."""
        self.take_over(connection)
        connection.checkout = self._work.adopt()
        if not self._is_async:  # an event loop does not survive a fork
            self._single = SingleConnection(connection)

    def detach(self) -> None:
        """Restores the classes. Connections that are out return to the pool without the guard."""
        pool, self._single = self._pool, None
        self.upkeep.stop()
        self._work.created = None
        self._discovery.detach()
        if "_guardrails" in vars(type(pool)):
            pool.__class__ = type(pool).__bases__[0]
        for connection in [*idle(pool), *checked_out(pool)]:
            if is_guarded(connection):
                connection.__class__ = type(connection).plain

    def _runner(self, leak_after: float | None) -> CommandRunner:
        return CommandRunner(self._guard, leak_after, is_async=self._is_async)

    def _hooks(self) -> dict[str, Any]:
        """The methods of the guarded class of the pool."""
        base, take_over = type(self._pool), self.take_over
        getter, releaser = (_async_getter, _async_releaser) if self._is_async else (_getter, _releaser)

        def make_connection(self: Any) -> Any:
            connection = base.make_connection(self)
            take_over(connection)
            return connection

        hooks = {"get_connection": getter(self, base), "release": releaser(self, base)}
        return hooks | {"make_connection": make_connection}

    # --- for the hooks -------------------------------------------------------------------------

    @cached_property
    def reserve(self) -> Any:
        """The connections for releases that the guard refuses."""
        return (AsyncReserve if self._is_async else Reserve)(self._pool, self._work, self.take_over)

    def take_over(self, connection: Any) -> None:
        """Guards a connection."""
        if is_guarded(connection):
            if connection.work is self._work:
                return
            connection.__class__ = type(connection).plain  # of a sentinel that now gets a guard
        connection.__class__ = self._guarded(type(connection))
        connection.guard()

    def _guarded(self, plain: type) -> type:
        if plain not in self._classes:
            if not plain.__dictoffset__:
                raise TypeError(f"a {plain.__name__} has no room for a checkout")
            self._classes[plain] = derive(plain, self._behaviours[self._is_async], self._work)
        return self._classes[plain]

    def adopt_late(self, connection: Any) -> RedisCheckout:
        """Guards a connection that returns from a checkout older than the guard; returns that checkout."""
        self.take_over(connection)
        return self._work.adopt()


def _getter(admission: ClientAdmission, base: Any) -> Any:
    work, lease = admission._work, admission.lease  # noqa: SLF001
    get_plain = without_wrapper(base.get_connection)

    def get_connection(self: Any, command_name: Any = None, *keys: Any, **options: Any) -> Any:  # noqa: ARG001
        try:
            if lease is not None and not lease.admits:
                lease.admit()
            checkout = work.enter()
        except RejectedError as refusal:
            if not is_release():
                work.checkouts.refused(refusal)
                raise
            return _or_refuse(admission.reserve.open(), refusal)
        token = current_checkout.set(checkout)
        try:
            connection = get_plain(self)
        except BaseException as error:
            checkout.release_slots()
            work.not_handed_out(error)
            raise
        finally:
            current_checkout.reset(token)
        try:
            work.hand_out(connection, checkout)
        except BaseException:  # an interrupt
            self.release(connection)
            raise
        return connection

    return get_connection


def _releaser(admission: ClientAdmission, base: Any) -> Any:
    take_back = admission._work.checkouts.remove  # noqa: SLF001
    upkeep, life = admission.upkeep, admission.upkeep.life

    def release(self: Any, connection: Any) -> None:
        if hasattr(connection, "checkout"):
            checkout, connection.checkout = connection.checkout, None
        else:
            checkout = admission.adopt_late(connection)
        if connection.close_on_release:
            connection.close_on_release = False
            connection.disconnect()
            if checkout is not None and checkout.from_reserve:
                admission.reserve.release(connection)
                return
        over = life.acts and upkeep.returned(connection)
        if over:
            connection.disconnect()
        try:
            base.release(self, connection)
            if over:
                upkeep.sink(connection)
        finally:
            if checkout is not None:
                checkout.release_slots()
                take_back(checkout)

    return release


def _or_refuse(connection: Any, refusal: RejectedError) -> Any:
    """Returns a connection of the reserve; raises the refusal if there is none."""
    if connection is None:
        raise prefer_block_error(refusal) or refusal
    return connection


# The asyncio twins are written out: shared code would cost each checkout two more calls.


def _async_getter(admission: ClientAdmission, base: Any) -> Any:
    work, lease = admission._work, admission.lease  # noqa: SLF001
    get_plain = without_wrapper(base.get_connection)

    async def get_connection(self: Any, command_name: Any = None, *keys: Any, **options: Any) -> Any:  # noqa: ARG001
        try:
            if lease is not None and not lease.admits:
                await lease.admit_async()
            checkout = await work.enter_async()
        except RejectedError as refusal:
            if not is_release():
                work.checkouts.refused(refusal)
                raise
            return _or_refuse(await admission.reserve.open(), refusal)
        token = current_checkout.set(checkout)
        try:
            connection = await get_plain(self)
        except BaseException as error:
            checkout.release_slots()
            work.not_handed_out(error)
            raise
        finally:
            current_checkout.reset(token)
        try:
            work.hand_out(connection, checkout)
        except BaseException:  # an interrupt
            await self.release(connection)
            raise
        return connection

    return get_connection


def _async_releaser(admission: ClientAdmission, base: Any) -> Any:
    take_back = admission._work.checkouts.remove  # noqa: SLF001
    upkeep, life = admission.upkeep, admission.upkeep.life

    async def release(self: Any, connection: Any) -> None:
        if hasattr(connection, "checkout"):
            checkout, connection.checkout = connection.checkout, None
        else:
            checkout = admission.adopt_late(connection)
        try:
            if connection.close_on_release:
                connection.close_on_release = False
                await connection.disconnect(nowait=True)
                if checkout is not None and checkout.from_reserve:
                    await admission.reserve.release(connection)
                    return
            over = life.acts and upkeep.returned(connection)
            if over:
                await connection.disconnect(nowait=True)
            await base.release(self, connection)
            if over:
                upkeep.sink(connection)
        finally:
            if checkout is not None:
                checkout.release_slots()
                take_back(checkout)

    return release
