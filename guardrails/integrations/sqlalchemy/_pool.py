"""Admission at the pool: a live pool gets a class whose checkouts pass the guard. Knows no statements.

The pool object stays the same, so Session, OptionEngine, AsyncEngine and raw_connection() all see it,
and ``engine.dispose()`` makes the next pool of the same class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import AssertionPool, Pool, QueuePool

from guardrails._guard import Guard
from guardrails.errors import ConfigurationError
from guardrails.integrations._checkouts import Checkout as Slots

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from guardrails.integrations.sqlalchemy._raw import Proxy
    from guardrails.integrations.sqlalchemy._stopping import Limit
    from guardrails.integrations.sqlalchemy._work import Worker

__all__ = ["Admission", "Checkout", "capacity", "guard_of"]


class Checkout(Slots):
    """One connection out of the pool.

    Attributes:
        lent: What stops the work of who has asked for the driver's own connection; None if nobody has, or has
            all the time in the world.
        below: The checkout that had the connection before, and still has: a StaticPool lets the same one
            out several times.
    """

    __slots__ = ("below", "lent")

    def __init__(self, guard: Guard) -> None:
        super().__init__(guard)
        self.lent: Limit | None = None
        self.below: Checkout | None = None

    def take_back(self) -> bool:
        """Ends the work past our hooks; False if the connection must not be used again."""
        if self.lent is not None and self.lent.end():
            self.spoilt = True
        return not self.spoilt


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


class Admission:
    """Lets connections out through a guard and takes their slots back, each exactly once.

    Args:
        guard: The engine's guard.
        wait: Runs a coroutine from inside SQLAlchemy's greenlet; None for a synchronous engine.

    Attributes:
        checkout_of: Gives the checkout a pool's record is in; None for one made before the guard was there.
    """

    def __init__(self, guard: Guard, wait: Callable[[Any], Any] | None) -> None:
        self._guard = guard
        self._door = guard.passage.doors[0]
        self._wait = wait
        self._out: dict[Any, Checkout] = {}
        self.checkout_of: Callable[[object], Checkout | None] = self._out.get

    def attach(self, pool: Pool, proxy: Proxy, worker: Worker) -> None:
        """Swaps the pool's class.

        Args:
            pool: The live pool.
            proxy: The class of the connections it hands out from now on.
            worker: Bounds the setting up of new ones.

        Raises:
            ConfigurationError: The pool's class cannot be derived from.
        """
        base = type(pool)
        try:
            pool.__class__ = self._guarded(base, proxy, worker)
        except TypeError as error:
            raise ConfigurationError(f"protect: a pool of class {base.__name__} cannot be guarded") from error
        # What is out already has no slot of its own; its return gives back an adopted one.
        checked_out = getattr(pool, "checkedout", None)
        self._door.step(self._door.gate.adopt, checked_out() if callable(checked_out) else 0)

    def detach(self, pool: Pool) -> None:
        """Puts the pool's own class back; what is out now returns as if nothing had been."""
        pool.__class__ = type(pool).__bases__[0]
        for checkout in self._out.values():
            checkout.take_back()  # or its deadline would come for whoever has the connection next
        self._out.clear()

    def checkout_with(self, connection: object) -> Checkout | None:
        """The checkout that holds a DBAPI connection, for hooks that are handed nothing else."""
        for record, checkout in list(self._out.items()):
            if record.dbapi_connection is connection:
                return checkout
        return None

    def _guarded(self, base: type[Pool], proxy: Proxy, worker: Worker) -> type[Pool]:
        guard, wait, leave, out = self._guard, self._wait, self._leave, self._out

        def _do_get(self: Pool) -> ConnectionPoolEntry:
            checkout = Checkout(guard)
            checkout.take_slots(wait)
            try:
                record: ConnectionPoolEntry = base._do_get(self)  # noqa: SLF001 - the pools' own hook
            except BaseException:
                checkout.give_back()
                raise
            checkout.below = out.get(record)
            out[record] = checkout
            return record

        def _do_return_conn(self: Pool, record: ConnectionPoolEntry) -> None:
            try:
                # SQLAlchemy has seen to it already, unless it was told not to ask about errors.
                checkout = out.get(record)
                if checkout is not None and (checkout.lent or checkout.spoilt) and not checkout.take_back():
                    record.invalidate()
                base._do_return_conn(self, record)  # noqa: SLF001
            finally:
                leave(record)

        # A single base and empty slots, or CPython refuses the swap ("object layout differs").
        own = {
            "__slots__": (),
            "_do_get": _do_get,
            "_do_return_conn": _do_return_conn,
            "_guardrails": self._guard,
            **_with_new_connections(base, proxy, worker),
        }
        return type(f"Guarded{base.__name__}", (base,), own)

    def _leave(self, record: ConnectionPoolEntry) -> None:
        checkout = self._out.pop(record, None)
        if checkout is None:
            self._door.check_in(0)
            return
        if checkout.below is not None:
            self._out[record] = checkout.below
        checkout.give_back()


def _with_new_connections(base: type[Pool], proxy: Proxy, worker: Worker) -> dict[str, Any]:
    """A pool's methods around its new connections, whose setting up the worker bounds."""

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
        return fairy

    def creator(self: Pool) -> Callable[[ConnectionPoolEntry], Any]:
        invoke = vars(self)["_invoke_creator"]

        def create(record: ConnectionPoolEntry) -> Any:
            connection = invoke(record)
            worker.set_up(connection)
            return connection

        return create

    def keep(self: Pool, invoke: object) -> None:
        vars(self)["_invoke_creator"] = invoke

    return {"connect": connect, "_invoke_creator": property(creator, keep)}
