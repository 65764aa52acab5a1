"""One guard and the databases behind it. Must not import a driver."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from sys import _getframe
from typing import Any, ClassVar

from django.db import utils

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.pool_wait import NO_WAIT, PoolWait, begin_wait
from guardrails._dbapi.runner import StatementRunner, as_it_is
from guardrails._guard.attachment import Upkeep
from guardrails._guard.guard import Guard, lease_of
from guardrails._guard.pool_snapshot import PoolSnapshot
from guardrails._pool.checkout import Checkout
from guardrails._pool.checkouts import Checkouts
from guardrails._pool.figures import PoolFigures
from guardrails._pool.frames import Site
from guardrails._pool.holders import PoolStatus
from guardrails._pool.open_limit import OpenLimit
from guardrails.errors import ConfigurationError, RejectedError
from guardrails.integrations.django._database.connections import DjangoConnections
from guardrails.integrations.django._database.kept import KeptConnections
from guardrails.integrations.django._database.options import Options
from guardrails.integrations.django._database.renewal import Renewal
from guardrails.integrations.django._database.revoking import Revocation
from guardrails.integrations.django._database.server_question import know_sessions

__all__ = ["CheckoutFinalizer", "Protection"]

_ANSWERS = ("IntegrityError", "ProgrammingError", "DataError", "NotSupportedError")
"""Errors that say something about the statement and prove that the database is alive."""


class ThreadCheckout(Checkout):
    """The connection of one thread, from its first work in a request to the end of the request.

    Attributes:
        wrapper: Weak reference to Django's wrapper of the connection.
        pool_wait: Its wait for a connection in shadow, if that counts as a statement that hangs.
    """

    __slots__ = ("pool_wait", "wrapper")

    wrapper: Callable[[], Any]
    pool_wait: PoolWait

    def is_kept(self, now: Site | None) -> bool:
        """See HeldCheckout. Django keeps a thread's connection, whichever function asked for it."""
        return now is not None


class CheckoutFinalizer:
    """Ends the checkout of a thread that has ended with its connection open.

    Only the wrapper of the thread's connection refers to this object, so both become garbage together.
    """

    __slots__ = ("checkout", "protection")

    def __init__(self, protection: Protection, checkout: ThreadCheckout) -> None:
        self.protection = protection
        self.checkout = checkout

    def __del__(self) -> None:
        self.protection.leave(self.checkout, dropped=True)


class Protection(ABC):
    """The state that the connections of all threads and aliases behind one guard have in common.

    Args:
        guard: The guard.
        options: What its aliases ask for.

    Attributes:
        system: The kind of server: SQLAlchemy's name of its dialect.
        guard: The guard.
        options: What its aliases ask for.
        registry: The holders of the connections.
        connections: Counts the connections.
        on: Whether the guard is still attached.
        direct: Runs statements, and opens connections where there is no pool.
        renewal: Replaces the connections when the primary has moved.
        kept: The connections that threads keep between requests; None without a budget.
    """

    system: ClassVar[str]

    def __init__(self, guard: Guard, options: Options) -> None:
        self.guard = guard
        self.options = options
        self._checkouts = Checkouts(guard, options.leak_after, is_async=False, system=self.system)
        self.registry = self._checkouts.registry
        self._figures = self.registry.figures
        self.connections = self.new_connections(self._figures)
        self.on = True
        driver = self.new_driver()
        know_sessions(self.system, driver, self.registry, asks=options.ask_server)
        self.direct = self.new_runner(driver)
        self.registry.failed_cancels = self.direct.failed_cancels
        self.connections.renewal = self.renewal = self.new_renewal()
        self.follow(self.direct)
        lease: Any = lease_of(guard)
        self.kept: KeptConnections | None = None
        if lease is not None:
            self._figures.lease = lease.snapshot
            self._keep_within(lease)
        self._revocation: Revocation | None = None
        if options.max_idle_hold is not None:
            self._revocation = Revocation(self.registry, options.max_idle_hold, self.direct, self.leave)

    def _keep_within(self, lease: Any) -> None:
        """Counts the open connections for a lease; those that are idle hold no slot."""
        limit = OpenLimit(self.guard, self.renewal.close_oldest)
        lease.count_with(limit.count)
        self.kept = KeptConnections(self.connections.wrappers)
        self.connections.limit, self.connections.descriptor_of = limit, self.descriptor_of
        self.renewal.keep_within(limit, lease, self.kept)

    # --- what differs between databases -----------------------------------------------------------

    @staticmethod
    @abstractmethod
    def dbapi() -> Any:
        """Returns the module of the driver."""

    @staticmethod
    @abstractmethod
    def descriptor_of(connection: Any) -> int:
        """Returns the descriptor of a connection's socket."""

    @staticmethod
    @abstractmethod
    def new_driver() -> Driver:
        """Returns the driver's operations."""

    def new_connections(self, figures: PoolFigures) -> DjangoConnections:
        """Returns what counts the connections."""
        return DjangoConnections(figures)

    def new_renewal(self) -> Renewal:
        """Returns what replaces the connections."""
        return Renewal(self.guard, self.direct.endpoint)

    @staticmethod
    def size_of(options: dict[str, Any]) -> int | None:  # noqa: ARG004 - a pool has one
        """Returns the number of connections that the ``OPTIONS`` of an alias allow; None for any."""
        return None

    @staticmethod
    def least_of(options: dict[str, Any]) -> object:  # noqa: ARG004 - a pool has one
        """Returns the number of connections that the ``OPTIONS`` of an alias keep open in any case."""
        return 0

    # --- and what does not ------------------------------------------------------------------------

    def new_runner(self, driver: Driver) -> StatementRunner:
        """Returns what runs work of a driver as evidence."""
        answers = tuple(getattr(errors, name) for errors in (self.dbapi(), utils) for name in _ANSWERS)
        return StatementRunner(self.guard, driver, as_it_is, is_async=False, errors=answers)

    def follow(self, runner: StatementRunner) -> None:
        """Lets the errors of a runner's work begin a renewal."""
        runner.classifier.moved, runner.classifier.suspect = self.renewal.renew, self.renewal.suspect

    @property
    def most(self) -> int | None:
        """See Attachment. Each thread may have a connection."""
        return None

    @property
    def upkeep(self) -> Upkeep | None:
        """See Attachment. Without a budget Django looks after the life of idle connections."""
        return None if self.kept is None else self.renewal

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

    def enter(self, wrapper: Any) -> CheckoutFinalizer:
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
        checkout.pool_wait = NO_WAIT
        finalizer = CheckoutFinalizer(self, checkout)  # first: an interrupt from here on releases the slot
        try:
            checkout.take_slots()
            checkout.pool_wait = begin_wait(self._figures, checkout, on_loop=False) or NO_WAIT
        except RejectedError as refusal:
            self._checkouts.refused(refusal)
            raise
        if self._revocation is not None:
            self._revocation.begin(checkout)
        self._checkouts.add(checkout)
        return finalizer

    def handed_out(self, finalizer: CheckoutFinalizer | None) -> None:
        """Counts a checkout, once: its caller has the connection now."""
        if finalizer is not None and finalizer.checkout.times is None:
            finalizer.checkout.pool_wait.end()
            self._figures.handed_out(finalizer.checkout)
            if self._revocation is not None:
                self._revocation.handed_out(finalizer.checkout)

    def leave(self, checkout: ThreadCheckout, *, dropped: bool = False) -> None:
        """Releases a checkout's slot, once; ``dropped`` if its thread ended with the connection open."""
        if not self.on:
            checkout.slots.clear()  # the guard has forgotten them
        checkout.pool_wait.end()
        checkout.release_slots()
        self._checkouts.remove(checkout, dropped=dropped)

    def check(self, alias: str, most: int | None) -> None:
        """Checks that a database has a connection for each of the guard's slots.

        Raises:
            ConfigurationError: It has fewer.
        """
        slots = self.guard.call_settings.gates[0].core.bulkhead.limit
        if most is not None and slots > most:
            raise ConfigurationError(
                f"DATABASES[{alias!r}]: guard {self.guard.name!r} has {slots} slots, and the pool {most} "
                f"connections: OPTIONS['pool'] needs a max_size of {slots} or more, or the guard "
                f"max_concurrent_calls={most} (a pool without sizes has 4 connections)"
            )
