"""Admits checkouts: replaces the class of a live pool by one whose checkouts pass the guard.

Depends on SQLAlchemy's pools; must not import statements. The pool object stays the same, so Session,
OptionEngine, AsyncEngine and raw_connection() all use it. ``engine.dispose()`` makes the next pool of the
same class.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from sys import _getframe
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import Pool

from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._dbapi.pool_wait import begin_wait
from guardrails._guard.guard import Guard
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.pool_reports import PoolReports
from guardrails.errors import BulkheadFullError, ConfigurationError
from guardrails.integrations.sqlalchemy._connections import PoolConnections
from guardrails.integrations.sqlalchemy._creator import bounded_creator
from guardrails.integrations.sqlalchemy._listeners import watch_check_in
from guardrails.integrations.sqlalchemy._revoking import Revocation

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from guardrails._dbapi.runner import StatementRunner
    from guardrails.fleet._pool_lease import PoolLease
    from guardrails.integrations.sqlalchemy._raw import Proxy
    from guardrails.integrations.sqlalchemy._upkeep import EngineUpkeep

__all__ = ["EngineAdmission", "guard_of", "registry_of"]


def guard_of(pool: Pool) -> Guard | None:
    """Returns the guard of a pool, or None."""
    guard: Guard | None = getattr(pool, "_guardrails", None)
    return guard


def registry_of(pool: Pool) -> HolderRegistry | None:
    """Returns the registry of a guarded pool's holders; None for a pool without a guard."""
    registry: HolderRegistry | None = getattr(pool, "_guardrails_registry", None)
    return registry


class EngineAdmission:
    """Takes slots for checkouts, and releases each exactly once.

    Args:
        guard: The engine's guard.
        wait: Runs a coroutine from inside SQLAlchemy's greenlet; None for a synchronous engine.
        leak_after: Seconds after which a connection on which nothing runs is reported; None is never.
        system: The kind of server; see `PoolFigures`.

    Attributes:
        checkout_of: Returns the checkout of a pool's record; None for a checkout older than the guard.
        registry: The holders of the pool's connections.
        upkeep: Is told of the connections that are opened and returned; must be set before `attach`.
        revocation: Takes connections back that are held idle; None if they may be held.
        lease: The pool's part of a fleet's budget; None without one.
    """

    upkeep: EngineUpkeep

    def __init__(
        self, guard: Guard, wait: Callable[[Any], Any] | None, leak_after: float | None, system: str
    ) -> None:
        self._guard = guard
        self._gate = guard.call_settings.gates[0]
        self._wait = wait
        self._out: dict[Any, DBAPICheckout] = {}
        self.registry = HolderRegistry(guard, self._out, leak_after, is_async=wait is not None, system=system)
        self.revocation: Revocation | None = None
        self.lease: PoolLease | None = None
        self._reports = PoolReports(self.registry)
        self._figures = self.registry.figures
        self._connections = PoolConnections(self._figures, self._out)
        self.checkout_of: Callable[[object], DBAPICheckout | None] = self._out.get

    def attach(self, pool: Pool, proxy: Proxy, runner: StatementRunner) -> None:
        """Replaces the pool's class.

        Args:
            pool: The live pool.
            proxy: The class of the connections that it hands out from now on.
            runner: Bounds the set-up of new connections.

        Raises:
            ConfigurationError: The pool's class cannot be subclassed.
        """
        base = type(pool)
        self.registry.failed_cancels = runner.failed_cancels
        try:
            pool.__class__ = self._guarded(base, proxy, runner)
        except TypeError as error:
            raise ConfigurationError(f"protect: a pool of class {base.__name__} cannot be guarded") from error
        # A connection that is out already has no slot of its own: its return releases an adopted slot.
        checked_out = getattr(pool, "checkedout", None)
        self._gate.step(self._gate.core.adopt, checked_out() if callable(checked_out) else 0)
        self._connections.attach(pool)

    def detach(self, pool: Pool) -> None:
        """Restores the pool's own class. Connections that are out return to it without the guard."""
        self._connections.detach(pool)
        pool.__class__ = type(pool).__bases__[0]
        for checkout in list(self._out.values()):
            checkout.take_back()  # otherwise its deadline would stop the next user of the connection
        self._out.clear()

    def disposed(self, pool: Pool) -> None:
        """Releases the slots of the disposed pools: a slot belongs to a connection of the current pool.

        Args:
            pool: The new pool.
        """
        for checkout in list(self._out.values()):
            each: DBAPICheckout | None = checkout
            while each is not None:
                if each.pool is not pool:
                    each.release_early()
                each = each.below
        for _ in range(self._gate.core.adopted):
            self._gate.check_in(0)

    def bring_to_top(self, record: Any, proxy: object) -> None:
        """Makes the checkout of a proxy the next to end, where one connection is out several times.

        Args:
            record: The pool's record of the connection.
            proxy: The user's connection object.
        """
        top = above = self._out.get(record)
        while above is not None and above.below is not None:
            checkout = above.below
            if checkout.is_of(proxy):
                above.below, checkout.below = checkout.below, top
                self._out[record] = checkout
                return
            above = checkout

    def checkout_with(self, connection: object) -> DBAPICheckout | None:
        """Returns the checkout of a DBAPI connection, for hooks that get only that; None if it is not out."""
        out = list(self._out.items())
        return next((each for record, each in out if record.dbapi_connection is connection), None)

    def _guarded(self, base: type[Pool], proxy: Proxy, runner: StatementRunner) -> type[Pool]:
        # A single base and empty slots, else CPython refuses the replacement ("object layout differs").
        # The name stays: SQLAlchemy names its loggers after the class.
        own = {
            "__slots__": (),
            "__module__": base.__module__,
            "__doc__": base.__doc__,
            "_do_get": self._getter(base, runner),
            "_do_return_conn": self._returner(base),
            "connect": self._connector(base, proxy, runner),
            "_invoke_creator": bounded_creator(runner, self._figures, self._connections.records, self.upkeep),
            "_close_connection": self._connections.closer(base),
            "_guardrails": self._guard,
            "_guardrails_registry": self.registry,
        }
        return type(base.__name__, (base,), own)

    def _getter(self, base: type[Pool], runner: StatementRunner) -> Callable[[Pool], ConnectionPoolEntry]:
        guard, wait, out, reports, lease = self._guard, self._wait, self._out, self._reports, self.lease
        site, caller, figures = self.registry.site, self.registry.caller, self._figures
        revocation, core, get = self.revocation, self._gate.core, base._do_get  # noqa: SLF001

        def _do_get(self: Pool) -> ConnectionPoolEntry:
            asked = figures.clock()
            if lease is not None and not lease.admits:
                lease.admit(wait)
            checkout = DBAPICheckout(guard, self, site(_getframe(1)), caller())
            checkout.asked = asked
            try:
                checkout.take_slots(wait)
            except BulkheadFullError:
                reports.refused()
                raise
            pool_wait = None
            try:
                if not core.enforces:
                    pool_wait = begin_wait(figures, checkout, on_loop=wait is not None)
                record = get(self) if revocation is None else revocation.take(checkout, base, self)
            except BaseException:
                checkout.release_slots()
                raise
            finally:
                if pool_wait is not None:
                    pool_wait.end()
            checkout.below = out.get(record)
            out[record] = checkout
            if not reports.watching:
                reports.watch()
            # The listeners of a checkout are bounded as the set-up of a new connection is.
            listening, connection = self.dispatch.checkout, record.dbapi_connection
            if connection is not None and (listening.listeners or listening.parent_listeners):
                runner.set_up(connection)
            return record

        return _do_get

    def _returner(self, base: type[Pool]) -> Callable[[Pool, ConnectionPoolEntry], None]:
        give_slots_back, out, upkeep, life = self._give_slots_back, self._out, self.upkeep, self.upkeep.life

        def _do_return_conn(self: Pool, record: ConnectionPoolEntry) -> None:
            try:
                # SQLAlchemy has invalidated the connection already, unless ``skip_user_error_events`` is set.
                checkout = out.get(record)
                if (
                    checkout is not None
                    and (checkout.must_discard or checkout.raw_limit or checkout.listener_limit)
                    and not checkout.take_back()
                ):
                    record.invalidate()
                if not (life.acts and upkeep.returned(self, record)):
                    base._do_return_conn(self, record)  # noqa: SLF001
            finally:
                give_slots_back(record)

        return _do_return_conn

    def _connector(
        self, base: type[Pool], proxy: Proxy, runner: StatementRunner
    ) -> Callable[[Pool], PoolProxiedConnection]:
        admission, out, handed_out = self, self._out, self._figures.handed_out

        def connect(self: Pool) -> PoolProxiedConnection:
            try:
                fairy = base.connect(self)
            except BaseException as error:
                if runner.setting_up:
                    runner.end_set_up(error)
                raise
            if runner.setting_up:
                try:
                    runner.end_set_up(connection=fairy.dbapi_connection)
                except BaseException as error:
                    fairy.invalidate(error)
                    raise
            fairy.__class__ = proxy
            record = fairy._connection_record  # noqa: SLF001
            checkout = out.get(record)
            if checkout is not None:
                checkout.proxy = record.fairy_ref
                if admission.revocation is not None:
                    admission.revocation.leave(checkout)
                reset, back = self.dispatch.reset, self.dispatch.checkin
                if checkout.below is not None:
                    admission._watch_first_proxy(record, checkout.below)
                elif reset.listeners or reset.parent_listeners or back.listeners or back.parent_listeners:
                    # Runs before SQLAlchemy's own callback: weak references call the latest first.
                    clean_up = partial(watch_check_in, runner, record, checkout)
                    checkout.finalizer = weakref.ref(fairy, clean_up)
                handed_out(checkout)
            return fairy

        return connect

    def _watch_first_proxy(self, record: Any, checkout: DBAPICheckout) -> None:
        """Watches the first proxy of a connection that is out once more: SQLAlchemy no longer does."""
        if checkout.proxy is not None and (first := checkout.proxy()) is not None:
            checkout.finalizer = weakref.ref(first, partial(self._proxy_dropped, record, checkout))

    def _proxy_dropped(self, record: Any, checkout: DBAPICheckout, _: object) -> None:
        """Ends a checkout whose proxy was garbage collected; SQLAlchemy ends the top one itself."""
        above = self._out.get(record)
        while above is not None and above.below is not checkout:
            above = above.below
        if above is not None:
            above.below = checkout.below
            self._reports.dropped(checkout)
            checkout.release_slots()
            self._figures.returned(checkout)

    def _give_slots_back(self, record: ConnectionPoolEntry) -> None:
        checkout = self._out.pop(record, None)
        if checkout is None:
            self._connections.records.add(record)
            self._gate.check_in(0)
            return
        if checkout.below is not None:
            self._out[record] = checkout.below
            # Otherwise SQLAlchemy would take the record for returned, and ignore its return.
            record.fairy_ref = checkout.below.proxy  # type: ignore[attr-defined] # of its own records
            if self.revocation is not None:
                self.revocation.leave(checkout)
        checkout.finalizer = None
        if checkout.reported:
            self._reports.returned(checkout)
        elif checkout.proxy is not None and checkout.proxy() is None:
            self._reports.dropped(checkout)
        checkout.release_slots()
        self._figures.returned(checkout)  # last: an interrupt here costs a figure and no slot
