"""Admits callers to a pool of asyncpg: replaces the class of the live pool.

The pool object stays the same. Depends on asyncpg's pools; must not import statements.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from sys import _getframe
from time import monotonic
from typing import Any

import asyncpg

from guardrails._dbapi.pool_wait import begin_wait
from guardrails._dbapi.runner_on_loop import LoopRunner
from guardrails._dbapi.watchdog import GRACE
from guardrails._guard.guard import Guard
from guardrails._pool.checkout import Checkout
from guardrails._pool.checkouts import Checkouts
from guardrails._pool.figures import Connections
from guardrails._pool.limits import time_allowed
from guardrails.errors import CallTimeoutError, ConfigurationError, RejectedError
from guardrails.fleet._pool_lease import PoolLease
from guardrails.integrations.asyncpg._connection_holders import ConnectionHolders
from guardrails.integrations.asyncpg._protocol import ProtocolWork

__all__ = ["PoolAdmission", "guard_of"]


def guard_of(pool: object) -> Guard | None:
    """Returns the guard of a pool, or None."""
    guard: Guard | None = getattr(type(pool), "_guardrails", None)
    return guard


class PoolAdmission:
    """Takes slots for connections of one pool, and releases each exactly once.

    Args:
        guard: The pool's guard.
        pool: The pool.
        runner: Runs the work on its connections.
        leak_after: Seconds after which a connection on which nothing runs is reported; None is never.

    Attributes:
        connection_holders: The connection holders, which release the slots.
        registry: The holders of the connections.
        lease: The pool's part of a fleet's budget; None without one. Set before `attach`.
    """

    lease: PoolLease | None = None

    def __init__(self, guard: Guard, pool: Any, runner: LoopRunner, leak_after: float | None) -> None:
        self._guard = guard
        self._gate = guard.call_settings.gates[0]
        self._pool = pool
        self._runner = runner
        self._checkouts = Checkouts(guard, leak_after, is_async=True, system="postgresql")
        self.connection_holders = ConnectionHolders(guard, self._checkouts, ProtocolWork(runner))
        self.registry = self._checkouts.registry
        self.registry.failed_cancels = runner.failed_cancels
        self._figures = self.registry.figures
        self._figures.connections = self._count
        self._process = os.getpid()
        self._connect = pool._connect  # noqa: SLF001 - asyncpg has no public way to any of this

    def attach(self) -> None:
        """Replaces the classes.

        Raises:
            ConfigurationError: The pool's class cannot be subclassed.
        """
        pool = self._pool
        base = type(pool)
        own = {
            "__slots__": (),
            "__module__": base.__module__,
            "__doc__": base.__doc__,
            "_acquire": self._acquirer(base),
            "release": self._releaser(base),
            "_async__init__": self._initializer(base),
            "_guardrails": self._guard,
        }
        try:
            pool.__class__ = type(base.__name__, (base,), own)
        except TypeError as error:
            raise ConfigurationError(f"protect: a pool of class {base.__name__} cannot be guarded") from error
        pool._connect = self._open  # noqa: SLF001
        self.connection_holders.take_over(pool)
        out = sum(not holder.is_idle() for holder in pool._holders)  # noqa: SLF001
        self._gate.step(self._gate.core.adopt, out)

    def detach(self) -> None:
        """Restores the classes. Connections that are out return to the pool without the guard."""
        pool = self._pool
        pool.__class__ = type(pool).__bases__[0]
        pool._connect = self._connect  # noqa: SLF001
        self.connection_holders.restore(pool)

    # --- the pool ------------------------------------------------------------------------------

    def _acquirer(self, base: Any) -> Callable[..., Any]:
        guard, core, clock = self._guard, self._gate.core, self._figures.clock
        site, caller, figures = self.registry.site, self.registry.caller, self._figures
        admission, hand_out, take_slots, lease = self, self._hand_out, self._take_slots, self.lease

        async def _acquire(self: Any, timeout: Any) -> Any:  # noqa: ASYNC109 - asyncpg's own
            if self.is_closing() or not self._initialized:
                return await base._acquire(self, timeout)  # noqa: SLF001 - it raises
            admission.check_home()
            asked = clock()
            if lease is not None and not lease.admits:
                await lease.admit_async()
            checkout = Checkout(guard, site(_getframe(1)), caller())
            checkout.asked = asked
            try:
                taken = checkout.take_slots_async() if timeout is None else take_slots(checkout, timeout)
                left = await taken
            except RejectedError as refusal:
                admission._checkouts.refused(refusal)
                raise
            pool_wait = None
            try:
                if not core.enforces:
                    pool_wait = begin_wait(figures, checkout, on_loop=True)
                    proxy = await base._acquire(self, left)  # noqa: SLF001
                elif self._queue.empty():
                    proxy = await admission._wait(base, left)
                else:
                    proxy = await base._acquire(self, left)  # noqa: SLF001
                hand_out(proxy._holder, checkout, timeout)  # noqa: SLF001
            except BaseException:
                checkout.release_slots()
                raise
            finally:
                if pool_wait is not None:
                    pool_wait.end()
            return proxy

        return _acquire

    def _hand_out(self, holder: Any, checkout: Checkout, timeout: Any) -> None:
        holder._timeout = timeout  # noqa: SLF001 - limits the return, which gets the caller's whole time
        if guard_of(self._pool) is self._guard:
            self.connection_holders.hand_out(holder, checkout)
        else:  # it was detached meanwhile
            checkout.release_slots()

    async def _take_slots(self, checkout: Checkout, timeout: float) -> float:  # noqa: ASYNC109
        """Takes the slots within the caller's own timeout; returns what is left of it."""
        started = monotonic()
        try:
            async with asyncio.timeout(timeout):
                await checkout.take_slots_async()
        except TimeoutError:
            self._figures.timed_out()
            raise
        return max(0.0, timeout - (monotonic() - started))

    async def _wait(self, base: Any, timeout: Any) -> Any:  # noqa: ASYNC109
        """Waits in the pool's own queue. The last holder may be busy closing or opening its connection."""
        seconds, _ = time_allowed(self._guard)
        try:
            async with asyncio.timeout(None if seconds is None else max(0.0, seconds) + GRACE) as limit:
                return await base._acquire(self._pool, timeout)  # noqa: SLF001
        except TimeoutError as error:
            self._figures.timed_out()
            if not limit.expired() or isinstance(error, CallTimeoutError):
                raise
            raise self._runner.timed_out(self._guard, seconds) from error

    def _releaser(self, base: Any) -> Callable[..., Any]:
        holders = self.connection_holders

        async def release(self: Any, connection: Any, *, timeout: Any = None) -> Any:  # noqa: ASYNC109
            if not holders.claim(connection):
                return None
            return await base.release(self, connection, timeout=timeout)

        return release

    def _initializer(self, base: Any) -> Callable[..., Any]:
        admission = self

        async def _async__init__(self: Any) -> Any:
            if not self._initialized:
                admission._process = os.getpid()
            try:
                return await base._async__init__(self)  # noqa: SLF001
            finally:
                if guard_of(self) is admission._guard:
                    admission.connection_holders.take_over(self)

        return _async__init__

    def check_home(self) -> None:
        """Checks that the pool belongs to this process and to the running event loop.

        Raises:
            ConfigurationError: It was opened elsewhere.
        """
        what = f"guard {self._guard.name!r}: this pool of asyncpg was opened"
        if self._process != os.getpid():
            raise ConfigurationError(f"{what} in another process; create it after the fork")
        if asyncio.get_running_loop() is not self._pool._loop:  # noqa: SLF001
            raise ConfigurationError(f"{what} on another event loop; use it there, or create one here")

    # --- its connections -----------------------------------------------------------------------

    async def _open(self, *args: Any, **kwargs: Any) -> Any:
        """Opens a connection as evidence, instead of the function that the pool was given."""
        started, began = self._figures.clock(), monotonic()
        connect = self._connect
        if connect is not asyncpg.connection.connect:
            connect = partial(_without_offers, connect, kwargs.get("server_settings"))
        try:
            connection = await self._runner.connect_async(partial(connect, *args), kwargs)
        except asyncio.CancelledError:
            if self._pool.is_closing():  # otherwise the next caller takes the connection
                self._runner.drop_openings()
            raise
        if guard_of(self._pool) is not self._guard:
            return connection  # it was detached meanwhile
        if isinstance(connection, asyncpg.Connection) and not connection.is_closed():
            self.connection_holders.take_over_connection(connection, began)
        self._figures.connected(started)
        return connection

    def _count(self) -> Connections:
        pool = self._pool
        size, idle = pool.get_size(), pool.get_idle_size()
        return Connections(size - idle, idle, pool.get_min_size())


async def _without_offers(connect: Any, settings: Any, *args: Any, **kwargs: Any) -> Any:
    """Connects with a function of the user's, which gets the arguments that the pool was given."""
    if settings is None:
        kwargs.pop("server_settings", None)
    else:
        kwargs["server_settings"] = settings
    return await connect(*args, **kwargs)
