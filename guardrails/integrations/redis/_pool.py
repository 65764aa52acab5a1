"""Admission at the pool: a live pool gets a class whose checkouts pass the guard. Knows no commands.

The pool object stays the same, so pipelines, locks, scripts and subscribers that were made before all
see it. Connections, made before or later, get a class of their own the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import redis.asyncio
import redis.connection
import redis.utils

from guardrails._guard.guard import Guard
from guardrails._runtime.fork import renew_after_fork
from guardrails.errors import ConfigurationError, RejectedError
from guardrails.integrations.redis._async_connection import GuardedAsyncConnection
from guardrails.integrations.redis._checkout import RedisCheckout, under_way
from guardrails.integrations.redis._commands import CommandRunner, instead_of
from guardrails.integrations.redis._connection import GuardedConnection
from guardrails.integrations.redis._guarded_connection import derive, derived, is_guarded
from guardrails.integrations.redis._releases import gives_back
from guardrails.integrations.redis._reserve import AsyncReserve, Reserve
from guardrails.integrations.redis._sentinel import Discovery, leave

__all__ = ["Admission", "capacity", "guard_of"]

_NO_LIMIT = 2**31
"""What redis-py writes for a pool without a limit."""


def capacity(pool: Any) -> int | None:
    """The most connections a pool lets out at once, or None where there is no limit."""
    most: int = pool.max_connections
    return most if most < _NO_LIMIT else None


def guard_of(pool: object) -> Guard | None:
    """The guard of a pool, or None."""
    guard: Guard | None = getattr(pool, "_guardrails", None)
    return guard


class Admission:
    """Lets connections out of a pool through a guard and takes their slots back, each exactly once.

    Args:
        guard: The client's guard.
        pool: Its pool.
    """

    def __init__(self, guard: Guard, pool: Any) -> None:
        self._guard = guard
        self._gate = guard.call_settings.gates[-1]
        self._work = CommandRunner(guard)
        self._pool = pool
        self._is_async = isinstance(pool, redis.asyncio.ConnectionPool)
        self._classes: dict[type, type] = {}
        self._discovery = Discovery(pool, self._work)
        self._kept: _Kept | None = None

    def attach(self) -> None:
        """Swaps the classes of the pool and of its connections.

        ``connection_class`` stays what it is; a connection gets its guarded class when it has been made.

        Raises:
            ConfigurationError: They cannot be derived from.
        """
        pool = self._pool
        base = type(pool)
        leave(pool)
        try:
            guarded = derived(base, {"_guardrails": self._guard, **_hooks(self)})
            self._guarded(pool.connection_class)
            for connection in _idle(pool):
                self.take_over(connection)
            pool.__class__ = guarded
            self._discovery.attach()
        except TypeError as error:
            self.detach()
            raise ConfigurationError(f"protect: a pool of class {base.__name__} cannot be guarded") from error
        # What is out already has no slot of its own; its return gives back an adopted one.
        self._gate.step(self._gate.core.adopt, len(_out(pool)))

    def adopt(self, connection: Any) -> None:
        """Guards the one connection a client keeps for itself."""
        self.take_over(connection)
        connection.checkout = self._work.adopt()
        if not self._is_async:  # an event loop cannot be carried over a fork, either
            self._kept = _Kept(connection)

    def detach(self) -> None:
        """Puts the classes back; what is out now returns as if nothing had been."""
        pool, self._kept = self._pool, None
        self._discovery.detach()
        if "_guardrails" in vars(type(pool)):
            pool.__class__ = type(pool).__bases__[0]
        for connection in [*_idle(pool), *_out(pool)]:
            if is_guarded(connection):
                connection.__class__ = type(connection).plain

    # --- for the hooks -------------------------------------------------------------------------

    @cached_property
    def reserve(self) -> Any:
        """Connections for calls that give something back and find the guard closed to them."""
        return (AsyncReserve if self._is_async else Reserve)(self._pool, self._work, self.take_over)

    def take_over(self, connection: Any) -> None:
        """Guards a connection."""
        if is_guarded(connection):
            if connection.work is self._work:
                return
            connection.__class__ = type(connection).plain  # of a sentinel, whose client now gets a guard
        connection.__class__ = self._guarded(type(connection))
        connection.guard()

    def _guarded(self, plain: type) -> type:
        if plain not in self._classes:
            if not plain.__dictoffset__:
                raise TypeError(f"a {plain.__name__} has no room for a checkout")
            behaviour = GuardedAsyncConnection if self._is_async else GuardedConnection
            self._classes[plain] = derive(plain, behaviour, self._work)
        return self._classes[plain]

    def adopt_late(self, connection: Any) -> RedisCheckout:
        """Guards a connection that comes back from a checkout older than the guard, and ends that."""
        self.take_over(connection)
        return self._work.adopt()


class _Kept:
    """The one connection of a client that keeps it. redis-py looks for a fork at its pools only.

    Args:
        connection: What two processes would read each other's replies from.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        renew_after_fork(self)

    def pause(self, seconds: float) -> bool:  # noqa: ARG002
        """See Survivor."""
        return True

    def unpause(self) -> None:
        """See Survivor."""

    def start_afresh(self) -> None:
        """Leaves the socket to the parent: the child's next command opens one of its own, in a slot anew."""
        self._connection.disconnect()
        if self._connection.checkout is not None:
            self._connection.checkout.slots.clear()


def _unwarned(method: Any) -> Any:
    """A method without redis-py's wrapper that looks for deprecated arguments; it will be given none."""
    is_wrapped = getattr(method, "__globals__", None) is vars(redis.utils)
    return method.__wrapped__ if is_wrapped else method


def _hooks(admission: Admission) -> dict[str, Any]:
    base = type(admission._pool)  # noqa: SLF001 - a part of it that is not a method
    if admission._is_async:  # noqa: SLF001
        get_connection, release = _async_getter(admission, base), _async_releaser(admission, base)
    else:
        get_connection, release = _getter(admission, base), _releaser(admission, base)

    def make_connection(self: Any) -> Any:
        connection = base.make_connection(self)
        admission.take_over(connection)
        return connection

    return {"get_connection": get_connection, "release": release, "make_connection": make_connection}


def _getter(admission: Admission, base: Any) -> Any:
    work = admission._work  # noqa: SLF001
    get_plain = _unwarned(base.get_connection)

    def get_connection(self: Any, command_name: Any = None, *keys: Any, **options: Any) -> Any:  # noqa: ARG001
        try:
            checkout = work.enter()
        except RejectedError as refusal:
            if not gives_back():
                raise
            connection = admission.reserve.lend()
            if connection is None:
                raise instead_of(refusal) or refusal  # noqa: B904 - either was there before
            return connection
        entering = under_way.set(checkout)
        try:
            return get_plain(self)
        except BaseException:
            checkout.give_back()
            raise
        finally:
            under_way.reset(entering)

    return get_connection


def _releaser(admission: Admission, base: Any) -> Any:
    def release(self: Any, connection: Any) -> None:
        if hasattr(connection, "checkout"):
            checkout, connection.checkout = connection.checkout, None
        else:
            checkout = admission.adopt_late(connection)
        if connection.closes:
            connection.closes = False
            connection.disconnect()
            if checkout is not None and checkout.extra:
                admission.reserve.release(connection)
                return
        try:
            base.release(self, connection)
        finally:
            if checkout is not None:
                checkout.give_back()

    return release


def _async_getter(admission: Admission, base: Any) -> Any:
    work = admission._work  # noqa: SLF001
    get_plain = _unwarned(base.get_connection)

    async def get_connection(self: Any, command_name: Any = None, *keys: Any, **options: Any) -> Any:  # noqa: ARG001
        try:
            checkout = await work.enter_async()
        except RejectedError as refusal:
            if not gives_back():
                raise
            connection = await admission.reserve.lend()
            if connection is None:
                raise instead_of(refusal) or refusal  # noqa: B904 - either was there before
            return connection
        entering = under_way.set(checkout)
        try:
            return await get_plain(self)
        except BaseException:
            checkout.give_back()
            raise
        finally:
            under_way.reset(entering)

    return get_connection


def _async_releaser(admission: Admission, base: Any) -> Any:
    async def release(self: Any, connection: Any) -> None:
        if hasattr(connection, "checkout"):
            checkout, connection.checkout = connection.checkout, None
        else:
            checkout = admission.adopt_late(connection)
        try:
            if connection.closes:
                connection.closes = False
                await connection.disconnect(nowait=True)
                if checkout is not None and checkout.extra:
                    await admission.reserve.release(connection)
                    return
            await base.release(self, connection)
        finally:
            if checkout is not None:
                checkout.give_back()

    return release


def _idle(pool: Any) -> Iterable[Any]:
    if isinstance(pool, redis.connection.BlockingConnectionPool):
        return [connection for connection in list(pool.pool.queue) if connection is not None]
    return list(pool._available_connections)  # noqa: SLF001 - there is no public getter


def _out(pool: Any) -> list[Any]:
    if isinstance(pool, redis.connection.BlockingConnectionPool):
        idle = set(_idle(pool))
        return [connection for connection in pool._connections if connection not in idle]  # noqa: SLF001
    return list(pool._in_use_connections)  # noqa: SLF001
