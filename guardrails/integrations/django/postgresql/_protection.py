"""One guard and the databases behind it. Must not open, make or look for a pool."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from sys import _getframe
from typing import Any

from django.db import connections, utils
from django.db.backends.postgresql import base
from django.utils.connection import ConnectionDoesNotExist

from guardrails._dbapi.drivers.psycopg_pool import FromPool, PooledPsycopg
from guardrails._dbapi.runner import StatementRunner, as_it_is
from guardrails._guard.compartments import COMPARTMENTS, set_compartments
from guardrails._guard.guard import Guard, attach, lease_of
from guardrails._guard.pool_snapshot import PoolSnapshot
from guardrails._pool.checkout import Checkout
from guardrails._pool.checkouts import Checkouts
from guardrails._pool.frames import Site
from guardrails._pool.holders import PoolStatus
from guardrails._runtime.fork import ForkedLock
from guardrails._runtime.scope import note_guard_error
from guardrails._util.checks import Faults
from guardrails._util.weak_registry import WeakRegistry
from guardrails.errors import CallTimeoutError, ConfigurationError, RejectedError
from guardrails.integrations.django._names import named
from guardrails.integrations.django.postgresql._connections import DjangoConnections
from guardrails.integrations.django.postgresql._pools import largest, refuse_kept_connections
from guardrails.integrations.django.postgresql._revoking import Revocation
from guardrails.integrations.django.postgresql._server_question import know_sessions
from guardrails.integrations.django.postgresql._upkeep import DjangoUpkeep

__all__ = ["Possession", "Protection", "guard_of_alias", "protect"]

_ANSWERS = tuple(
    getattr(errors, name)
    for errors in (base.Database, utils)
    for name in ("IntegrityError", "ProgrammingError", "DataError", "NotSupportedError")
)
"""Errors that say something about the statement and prove that the database is alive: the driver's, and
Django's for them."""


class ThreadCheckout(Checkout):
    """The connection of one thread, from its first work in a request to the end of the request.

    Attributes:
        wrapper: Weak reference to Django's wrapper of the connection.
    """

    __slots__ = ("wrapper",)

    wrapper: Callable[[], Any]

    def is_kept(self, now: Site | None) -> bool:
        """See HeldCheckout. Django keeps a thread's connection, whichever function asked for it."""
        return now is not None


class Possession:
    """Kept by the wrapper of a thread's connection while it has a checkout.

    A thread may end with its connection open. The wrapper is garbage then, and this object with it.
    """

    __slots__ = ("checkout", "protection")

    def __init__(self, protection: Protection, checkout: ThreadCheckout) -> None:
        self.protection = protection
        self.checkout = checkout

    def __del__(self) -> None:
        self.protection.leave(self.checkout, dropped=True)


class Protection:
    """The state that the connections of all threads and aliases behind one guard have in common.

    Args:
        guard: The guard.
        leak_after: Seconds after which a connection on which nothing runs is reported; None is never.
        max_idle_hold: Seconds after which such a connection is taken back; None is never.
        ask_server: Whether to ask the server for locks when the connections run out, and for the sessions of
            connections that were taken back.

    Attributes:
        guard: The guard.
        registry: The holders of the connections.
        connections: Counts the connections.
        on: Whether the guard is still attached.
        direct: Runs statements, and opens connections where there is no pool.
        pooled: Takes connections from a pool.
        renewal: Replaces the connections when the primary has moved.
        upkeep: None: Django and its pool look after the life of idle connections.
    """

    upkeep = None

    def __init__(
        self, guard: Guard, leak_after: float | None, max_idle_hold: float | None, *, ask_server: bool
    ) -> None:
        self.guard = guard
        self._checkouts = Checkouts(guard, leak_after, is_async=False, system="postgresql")
        self.registry = self._checkouts.registry
        self._figures = self.registry.figures
        self.connections = DjangoConnections(self._figures)
        self.on = True
        driver = PooledPsycopg()
        know_sessions(driver, self.registry, asks=ask_server)
        self.direct = StatementRunner(guard, driver, as_it_is, is_async=False, errors=_ANSWERS)
        self.pooled = StatementRunner(guard, FromPool(), as_it_is, is_async=False, errors=_ANSWERS)
        self.registry.failed_cancels = self.direct.failed_cancels
        renewal = DjangoUpkeep(guard, self.connections.pools, self.direct.endpoint)
        self.connections.upkeep = self.renewal = renewal
        for runner in (self.direct, self.pooled):
            runner.judge.moved, runner.judge.suspect = renewal.renew, renewal.suspect
        self._slots = guard.call_settings.gates[0].core.bulkhead
        lease: Any = lease_of(guard)
        self._figures.lease = None if lease is None else lease.snapshot
        self._pools: WeakRegistry[Any] = WeakRegistry()
        self._revocation: Revocation | None = None
        if max_idle_hold is not None:
            self._revocation = Revocation(self.registry, max_idle_hold, self.direct, self.leave)

    @property
    def most(self) -> int | None:
        """See Attachment: what the smallest pool can hold that was asked so far."""
        return min((pool.max_size for pool in self._pools.living() if not pool.closed), default=None)

    def detach(self) -> None:
        """See Attachment."""
        self.on = False
        self.renewal.stop()
        self._checkouts.clear()

    def figures(self) -> PoolSnapshot:
        """See Attachment."""
        return self._figures.snapshot()

    def status(self) -> PoolStatus:
        """See Attachment."""
        return self.registry.status()

    def enter(self, wrapper: Any) -> Possession:
        """Takes a slot for the connection of this thread.

        Args:
            wrapper: Django's wrapper of the connection.

        Raises:
            RejectedError: There is none.
        """
        registry, asked = self.registry, self._figures.clock()
        checkout = ThreadCheckout(self.guard, registry.site(_getframe(1)), registry.caller())
        checkout.asked = asked
        checkout.wrapper = weakref.ref(wrapper)
        possession = Possession(self, checkout)  # first: an interrupt from here on gives the slot back
        try:
            checkout.take_slots()
            self._figures.expect_wait(checkout)
        except RejectedError as refusal:
            self._checkouts.refused(refusal)
            raise
        if self._revocation is not None:
            self._revocation.begin(checkout)
        self._checkouts.add(checkout)
        return possession

    def handed_out(self, possession: Possession | None) -> None:
        """Counts a checkout, once: its caller has the connection now."""
        if possession is not None and possession.checkout.times is None:
            self._figures.handed_out(possession.checkout)
            if self._revocation is not None:
                self._revocation.handed_out(possession.checkout)

    def leave(self, checkout: ThreadCheckout, *, dropped: bool = False) -> None:
        """Gives a checkout's slot back, once; ``dropped`` if its thread ended with the connection open."""
        if not self.on:
            checkout.slots.clear()  # the guard has forgotten them
        checkout.release_slots()
        self._checkouts.remove(checkout, dropped=dropped)

    def borrow(self, pool: Any) -> Any:
        """Takes a connection from a pool.

        Raises:
            CallTimeoutError: There was none in time.
            RejectedError: Too many callers wait for one.
        """
        from psycopg_pool import PoolTimeout, TooManyRequests  # noqa: PLC0415 - there only with a pool

        from guardrails.integrations.django.postgresql._pool_timeout import PoolTimeoutError  # noqa: PLC0415
        from guardrails.integrations.psycopg_pool._borrowing import borrow  # noqa: PLC0415

        name, core = self.guard.name, self.guard.call_settings.gates[0].core
        try:
            return self.pooled.connect(partial(borrow, pool, pool.getconn), {})
        except CallTimeoutError as error:
            self._figures.timed_out()
            raise note_guard_error(PoolTimeoutError(name, error.timeout)) from error.__cause__
        except TooManyRequests as error:
            if not core.enforces:
                raise
            raise self.guard.call_settings.gates[0].refuse("bulkhead_full") from error
        except PoolTimeout as error:
            self._figures.timed_out()
            if not core.enforces:
                raise
            raise note_guard_error(PoolTimeoutError(name, pool.timeout)) from error

    def check(self, alias: str, most: int | None) -> None:
        """Checks that a pool has a connection for each of the guard's slots.

        Raises:
            ConfigurationError: It has fewer.
        """
        if most is not None and self._slots.limit > most:
            faults = Faults(f"DATABASES[{alias!r}]")
            faults.count(f"the slots of guard {self.guard.name!r}", self._slots.limit, most=most)
            faults.raise_if_any()

    def serve(self, alias: str, pool: Any) -> None:
        """Notes that connections come from a pool, too; see ``check``."""
        self.check(alias, pool.max_size)
        self._pools.add(pool)
        self.connections.pools.add(pool)


_lock = ForkedLock()
_protections: dict[Guard, Protection] = {}


def protect(alias: str, settings: dict[str, Any]) -> Protection:
    """The protection that an alias asks for in its ``OPTIONS``; the first to ask attaches the guard.

    Args:
        alias: The alias.
        settings: Its entry in ``DATABASES``.

    Raises:
        ConfigurationError: The options are wrong.
    """
    where, options = f"DATABASES[{alias!r}]", settings["OPTIONS"]
    faults = Faults(where)
    guard = named(f"{where}: OPTIONS['guard']", options.get("guard"))
    if not isinstance(guard, Guard):
        faults.add("OPTIONS['guard']", guard, "a Guard or its dotted name")
    compartments = options.get("compartments", COMPARTMENTS[0])
    faults.choice("OPTIONS['compartments']", compartments, COMPARTMENTS)
    leak_after = options.get("leak_after", 60.0)
    faults.seconds("OPTIONS['leak_after']", leak_after, none=True)
    max_idle_hold = options.get("max_idle_hold")
    faults.seconds("OPTIONS['max_idle_hold']", max_idle_hold, none=True)
    ask_server = options.get("ask_server", True)
    faults.flag("OPTIONS['ask_server']", ask_server)
    faults.raise_if_any()
    most = largest(options.get("pool"))
    if lease_of(guard) is not None:
        refuse_kept_connections(where, settings)
    with _lock:
        protection = _protections.get(guard)
        if protection is not None:
            protection.check(alias, most)
            return protection
        if guard.call_settings.attached:
            raise ConfigurationError(f"{where}: guard {guard.name!r} protects something else already")
        protection = Protection(guard, leak_after, max_idle_hold, ask_server=ask_server)
        protection.check(alias, most)
        _protections[guard] = protection
        set_compartments(guard, compartments)
        attach(guard, protection)
    return protection


def guard_of_alias(alias: str) -> Guard | None:
    """Returns the guard of a database; None without one."""
    try:
        wrapper: Any = connections[alias]
    except ConnectionDoesNotExist:
        return None
    protection: Protection | None = getattr(wrapper, "_protection", None)
    return None if protection is None or not protection.on else protection.guard
