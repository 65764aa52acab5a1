"""Admission at the pool: a live pool gets a class whose checkouts pass the guard. Knows no statements.

The pool object stays the same, so Session, OptionEngine, AsyncEngine and raw_connection() all see it,
and ``engine.dispose()`` makes the next pool of the same class.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from sys import _getframe
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import AssertionPool, Pool, QueuePool

from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._guard.guard import Guard
from guardrails.errors import BulkheadFullError, ConfigurationError
from guardrails.integrations.sqlalchemy._holder_registry import HolderRegistry

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from guardrails._dbapi.runner import StatementRunner
    from guardrails.integrations.sqlalchemy._raw import Proxy

__all__ = ["Admission", "capacity", "guard_of", "registry_of"]


def capacity(pool: Pool) -> int | None:
    """The most connections a pool lets out at once, or None where there is no limit."""
    if isinstance(pool, QueuePool):
        overflow: int = pool._max_overflow  # noqa: SLF001 - there is no public getter
        return None if overflow < 0 else pool.size() + overflow
    return 1 if isinstance(pool, AssertionPool) else None


def guard_of(pool: Pool) -> Guard | None:
    """The guard of a pool, or None."""
    guard: Guard | None = getattr(pool, "_guardrails", None)
    return guard


def registry_of(pool: Pool) -> HolderRegistry | None:
    """Who holds a guarded pool's connections; None of one without a guard."""
    registry: HolderRegistry | None = getattr(pool, "_guardrails_ledger", None)
    return registry


class Admission:
    """Lets connections out through a guard and takes their slots back, each exactly once.

    Args:
        guard: The engine's guard.
        wait: Runs a coroutine from inside SQLAlchemy's greenlet; None for a synchronous engine.
        leak_after: Seconds after which a connection on which nothing runs is told of; None is never.

    Attributes:
        checkout_of: Gives the checkout a pool's record is in; None for one made before the guard was there.
    """

    def __init__(self, guard: Guard, wait: Callable[[Any], Any] | None, leak_after: float | None) -> None:
        self._guard = guard
        self._gate = guard.call_settings.gates[0]
        self._wait = wait
        self._out: dict[Any, DBAPICheckout] = {}
        self._registry = HolderRegistry(guard, self._out, leak_after, is_async=wait is not None)
        self.checkout_of: Callable[[object], DBAPICheckout | None] = self._out.get

    def attach(self, pool: Pool, proxy: Proxy, worker: StatementRunner) -> None:
        """Swaps the pool's class.

        Args:
            pool: The live pool.
            proxy: The class of the connections it hands out from now on.
            worker: Bounds the setting up of new ones.

        Raises:
            ConfigurationError: The pool's class cannot be derived from.
        """
        base = type(pool)
        self._registry.failed_cancels = worker.failed_cancels
        try:
            pool.__class__ = self._guarded(base, proxy, worker)
        except TypeError as error:
            raise ConfigurationError(f"protect: a pool of class {base.__name__} cannot be guarded") from error
        # What is out already has no slot of its own; its return gives back an adopted one.
        checked_out = getattr(pool, "checkedout", None)
        self._gate.step(self._gate.core.adopt, checked_out() if callable(checked_out) else 0)

    def detach(self, pool: Pool) -> None:
        """Puts the pool's own class back; what is out now returns as if nothing had been."""
        pool.__class__ = type(pool).__bases__[0]
        for checkout in self._out.values():
            checkout.take_back()  # or its deadline would come for whoever has the connection next
        self._out.clear()

    def disposed(self, pool: Pool) -> None:
        """The engine has got a new pool, and so all of its connections: a slot belongs to one pool.

        Args:
            pool: The new pool.
        """
        for checkout in list(self._out.values()):
            each: DBAPICheckout | None = checkout
            while each is not None:
                if each.pool is not pool:
                    each.surrender()
                each = each.below
        for _ in range(self._gate.core.adopted):
            self._gate.check_in(0)

    def put_on_top(self, record: Any, proxy: object) -> None:
        """Makes the checkout of a proxy the one that leaves next, where one connection is out several times.

        Args:
            record: The pool's record of the connection.
            proxy: What the user has of it.
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
        """The checkout that holds a DBAPI connection, for hooks that are handed nothing else."""
        for record, checkout in list(self._out.items()):
            if record.dbapi_connection is connection:
                return checkout
        return None

    def _guarded(self, base: type[Pool], proxy: Proxy, worker: StatementRunner) -> type[Pool]:
        # A single base and empty slots, or CPython refuses the swap ("object layout differs").
        # The name stays: SQLAlchemy names its loggers after the class.
        own = {
            "__slots__": (),
            "__module__": base.__module__,
            "__doc__": base.__doc__,
            "_do_get": self._getter(base, worker),
            "_do_return_conn": self._returner(base),
            "connect": self._connector(base, proxy, worker),
            "_invoke_creator": _creator_of(worker),
            "_guardrails": self._guard,
            "_guardrails_ledger": self._registry,
        }
        return type(base.__name__, (base,), own)

    def _getter(self, base: type[Pool], worker: StatementRunner) -> Callable[[Pool], ConnectionPoolEntry]:
        guard, wait, out, registry = self._guard, self._wait, self._out, self._registry
        site, caller = registry.site, registry.caller

        def _do_get(self: Pool) -> ConnectionPoolEntry:
            checkout = DBAPICheckout(guard, self, site(_getframe(1)), caller())
            try:
                checkout.take_slots(wait)
            except BulkheadFullError:
                registry.refused(self)
                raise
            try:
                record: ConnectionPoolEntry = base._do_get(self)  # noqa: SLF001 - the pools' own hook
            except BaseException:
                checkout.give_back()
                raise
            checkout.below = out.get(record)
            out[record] = checkout
            if not registry.watched:
                registry.watch()
            # A new connection is bounded until it is handed out, and so are the listeners of an old one.
            listening = self.dispatch.checkout
            if listening.listeners or listening.parent_listeners:
                connection = record.dbapi_connection
                if connection is not None:
                    worker.set_up(connection)
            return record

        return _do_get

    def _returner(self, base: type[Pool]) -> Callable[[Pool, ConnectionPoolEntry], None]:
        leave, out = self._leave, self._out

        def _do_return_conn(self: Pool, record: ConnectionPoolEntry) -> None:
            try:
                # SQLAlchemy has seen to it already, unless it was told not to ask about errors.
                checkout = out.get(record)
                if (
                    checkout is not None
                    and (checkout.must_discard or checkout.lent or checkout.bracket)
                    and not checkout.take_back()
                ):
                    record.invalidate()
                base._do_return_conn(self, record)  # noqa: SLF001
            finally:
                leave(record)

        return _do_return_conn

    def _connector(
        self, base: type[Pool], proxy: Proxy, worker: StatementRunner
    ) -> Callable[[Pool], PoolProxiedConnection]:
        admission, out = self, self._out

        def connect(self: Pool) -> PoolProxiedConnection:
            try:
                fairy = base.connect(self)
            except BaseException as error:
                if worker.setting_up:
                    worker.ready(error)
                raise
            if worker.setting_up:
                try:
                    worker.ready()
                except BaseException as error:
                    fairy.invalidate(error)
                    raise
            fairy.__class__ = proxy
            record = fairy._connection_record  # noqa: SLF001
            checkout = out.get(record)
            if checkout is not None:
                checkout.proxy = record.fairy_ref
                reset, back = self.dispatch.reset, self.dispatch.checkin
                if checkout.below is not None:
                    admission._superseded(record, checkout.below)
                elif reset.listeners or reset.parent_listeners or back.listeners or back.parent_listeners:
                    # Called before SQLAlchemy's own callback: the latest is first.
                    clean_up = partial(_watch_check_in, worker, record, checkout)
                    checkout.finalizer = weakref.ref(fairy, clean_up)
            return fairy

        return connect

    def _superseded(self, record: Any, checkout: DBAPICheckout) -> None:
        """Looks after a checkout whose connection is out once more: SQLAlchemy forgets its first proxy."""
        first = None if checkout.proxy is None else checkout.proxy()
        if first is not None:
            checkout.finalizer = weakref.ref(first, partial(self._drop, record, checkout))

    def _drop(self, record: Any, checkout: DBAPICheckout, _: object) -> None:
        """The proxy of a checkout is gone; of the one on top SQLAlchemy takes care."""
        above = self._out.get(record)
        while above is not None and above.below is not checkout:
            above = above.below
        if above is not None:
            above.below = checkout.below
            self._registry.dropped(checkout)
            checkout.give_back()

    def _leave(self, record: ConnectionPoolEntry) -> None:
        checkout = self._out.pop(record, None)
        if checkout is None:
            self._gate.check_in(0)
            return
        if checkout.below is not None:
            self._out[record] = checkout.below
            # Or SQLAlchemy would think that it is back already, and not say so when it comes.
            record.fairy_ref = checkout.below.proxy  # type: ignore[attr-defined] # of its own records
        checkout.finalizer = None
        if checkout.reported:
            self._registry.returned(checkout)
        elif checkout.proxy is not None and checkout.proxy() is None:
            self._registry.dropped(checkout)
        checkout.give_back()


def _watch_check_in(worker: StatementRunner, record: Any, checkout: DBAPICheckout, _: object) -> None:
    """Bounds what listeners do with a connection that the garbage collector gives back."""
    if record.dbapi_connection is not None:
        worker.watch_check_in(record.dbapi_connection, checkout)


def _creator_of(worker: StatementRunner) -> property:
    """A pool's function that opens connections, whose setting up is bounded until they are handed out."""

    def creator(self: Pool) -> Callable[[ConnectionPoolEntry], Any]:
        try:
            invoke = vars(self)["_invoke_creator"]
        except KeyError:
            raise AttributeError("_invoke_creator") from None

        def create(record: ConnectionPoolEntry) -> Any:
            connection = invoke(record)
            worker.set_up(connection)
            return connection

        return create

    def keep(self: Pool, invoke: object) -> None:
        vars(self)["_invoke_creator"] = invoke

    def forget(self: Pool) -> None:
        try:
            del vars(self)["_invoke_creator"]
        except KeyError:
            raise AttributeError("_invoke_creator") from None

    return property(creator, keep, forget)
