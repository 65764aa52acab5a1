"""Admits callers to a pool of psycopg_pool: replaces the class of the live pool and that of its connections.

The pool object stays the same. Depends on psycopg_pool; must not import statements.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from sys import _getframe
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, get_origin
from weakref import ref

import psycopg_pool

from guardrails._core.gate import OPENING
from guardrails._dbapi.drivers.background import Background
from guardrails._dbapi.drivers.psycopg_pool import FromPool
from guardrails._dbapi.runner_on_loop import LoopRunner
from guardrails._guard.guard import Guard, set_slots
from guardrails._pool.checkouts import Checkouts
from guardrails._pool.figures import Connections
from guardrails._pool.open_limit import PoolEntry
from guardrails._runtime.guard_log import log
from guardrails._runtime.housekeeper import run_later
from guardrails._runtime.scope import note_guard_error
from guardrails._util.names import fields_of
from guardrails.errors import CallTimeoutError, ConfigurationError
from guardrails.fleet._pool_lease import PoolLease
from guardrails.integrations.psycopg_pool._connections import guarded_async_class, guarded_class
from guardrails.integrations.psycopg_pool._errors import PoolTimeoutError
from guardrails.integrations.psycopg_pool._hooks import hooks, hooks_on_loop
from guardrails.integrations.psycopg_pool._replacing import replace_lost_connection
from guardrails.integrations.psycopg_pool._upkeep import PsycopgPoolUpkeep
from guardrails.integrations.psycopg_pool._work import ConnectionWork, PoolCheckout, WorkState, once

if TYPE_CHECKING:
    from guardrails.integrations.psycopg_pool._revoking import Revocation

__all__ = ["PoolAdmission", "guard_of"]

_STATE = "_guardrails"
_DRAIN_INTERVAL = 2.0
"""Minimum seconds between two replacements of all connections."""


def guard_of(pool: object) -> Guard | None:
    """Returns the guard of a pool, or None."""
    guard: Guard | None = getattr(type(pool), "_guardrails_guard", None)
    return guard


class PoolAdmission:
    """Takes slots for connections of one pool, and releases each exactly once.

    Args:
        guard: The pool's guard.
        pool: The pool.
        runner: Runs the work on its connections.
        leak_after: Seconds after which a connection on which nothing runs is reported; None is never.
        asked: The slots that the user has asked for; None follows the size of the pool.

    Attributes:
        attached: False once the guard was detached. A thread, or a worker of the pool, may be in the middle.
        checkouts: Those that are out.
        figures: The figures of the pool.
        guard: The pool's guard.
        lends: Takes connections from the pool, as evidence.
        lease: The pool's part of a fleet's budget; None without one. Set before `attach`.
        registry: The holders of the connections.
        upkeep: Is told of the connections, for a fleet; None without one.
        revocation: Takes connections back that are held idle; None if they may be held.
    """

    lease: PoolLease | None = None
    upkeep: PsycopgPoolUpkeep | None = None

    def __init__(
        self, guard: Guard, pool: Any, runner: LoopRunner, leak_after: float | None, asked: int | None
    ) -> None:
        self.attached = True
        self.guard = guard
        self._gate = guard.call_settings.gates[0]
        self._pool = pool
        self._runner = runner
        self._asked = asked
        self._size = pool.max_size
        self._is_async = isinstance(pool, psycopg_pool.AsyncConnectionPool)
        self.lends = LoopRunner(guard, FromPool(), lambda own: own, is_async=self._is_async, errors=())
        self.checkouts = Checkouts(guard, leak_after, is_async=self._is_async, system="postgresql")
        self.registry = self.checkouts.registry
        self.registry.failed_cancels = runner.failed_cancels
        self.figures = self.registry.figures
        self.figures.connections = self._count
        self._work = ConnectionWork(runner, self._gate.clock)
        self._process = None if pool.closed else os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drained = 0.0
        self._background = Background(lambda _: None)
        self.revocation: Revocation | None = None

    def attach(self) -> None:
        """Replaces the classes."""
        pool, base = self._pool, type(self._pool)
        self._given = pool.connection_class
        self._plain = get_origin(self._given) or self._given  # it may be Connection[TupleRow]
        make = guarded_async_class if self._is_async else guarded_class
        self._class = make(self._plain, self._work, self)
        own: dict[str, Any] = {"__module__": base.__module__, "__doc__": base.__doc__}
        own |= hooks_on_loop(self, base) if self._is_async else hooks(self, base)
        own["_guardrails_guard"] = self.guard
        pool.__class__ = type(base.__name__, (base,), own)
        pool.connection_class = self._class
        for connection in list(pool._pool):  # noqa: SLF001 - psycopg_pool has no public way to any of this
            state = self._take_over(connection)
            if self.upkeep is not None:
                state.closed = self.upkeep.adopt(connection, state.closed)

    def detach(self) -> None:
        """Restores the classes. Connections that are out return to the pool without the guard."""
        self.attached = False  # first: a caller that returns a connection later ends its checkout
        pool = self._pool
        pool.__class__ = type(pool).__bases__[0]
        pool.connection_class = self._given
        for connection in list(pool._pool):  # noqa: SLF001
            self._restore(connection)
        for checkout in list(self.registry.out.values()):
            self._restore(checkout.connection(), checkout)
        self.checkouts.clear()

    def renew(self) -> None:
        """Has the pool replace its connections: the server has become read-only, as after a fail-over."""
        now = monotonic()
        if now < self._drained + _DRAIN_INTERVAL or not hasattr(self._pool, "drain"):
            return
        self._drained = now
        name = self.guard.name
        log.warning("guard %r: the connections of its pool are being replaced", name, extra=fields_of(name))
        if self._is_async:
            self._background.run(self._pool.drain(), _DRAIN_INTERVAL)
        else:
            run_later(self._pool.drain, 0.0)

    # --- its connections -----------------------------------------------------------------------

    def note_opening(self, connection: Any, began: float, started: float, entry: PoolEntry | None) -> None:
        """Counts a connection that the pool has opened."""
        self.figures.connected(started)
        state = WorkState(began, monotonic())
        state.closed = once(self.figures.closed)
        setattr(connection, _STATE, state)
        if self.upkeep is not None:
            state.closed = self.upkeep.created(connection, entry, state.closed)
        if self.attached:
            self._take_over(connection)
        else:
            self._restore(connection)

    def note_failed_opening(self, error: BaseException, entry: PoolEntry | None) -> None:
        """Counts a failure to open a connection as evidence: it concerns no one caller."""
        if entry is not None:
            entry.end()
        if self.attached and isinstance(error, Exception):
            self._gate.end(self._gate.begin(OPENING), self._runner.classifier.outcome_of_connect(error))

    def _take_over(self, connection: Any) -> WorkState:
        """Guards a connection that the pool has opened before. The work of one of a foreign class is not."""
        kind = type(connection)
        if kind is not self._class and getattr(kind, "_guarded_class", kind) is self._plain:
            connection.__class__ = self._class
        if _STATE not in vars(connection):
            setattr(connection, _STATE, WorkState(monotonic(), monotonic()))
        state: WorkState = vars(connection)[_STATE]
        return state

    def _restore(self, connection: Any, checkout: PoolCheckout | None = None) -> None:
        """Restores a connection, and ends its checkout: it returns to the pool without the guard."""
        if checkout is not None:
            checkout.connection = _gone  # otherwise its end would be taken for that of a dropped connection
        if type(connection) is self._class:
            connection.__class__ = self._plain
        if connection is not None and _STATE in vars(connection):
            vars(connection)[_STATE].checkout = None

    # --- checkouts -----------------------------------------------------------------------------

    def new_checkout(self) -> PoolCheckout:
        checkout = PoolCheckout(self.guard, self.registry.site(_getframe(2)), self.registry.caller())
        checkout.asked = self.figures.clock()
        return checkout

    def hand_out(self, connection: Any, checkout: PoolCheckout) -> Any:
        self._take_over(connection).checkout = checkout
        checkout.connection = ref(connection, partial(self._dropped, checkout))
        if self.revocation is not None:
            self.revocation.begin(checkout, self._loop)
        self.checkouts.add(checkout)
        self.figures.handed_out(checkout)
        if not self.attached:
            self._restore(connection, checkout)
            checkout.release_slots()
            self.checkouts.remove(checkout)
        return connection

    def before_return(self, connection: Any) -> PoolCheckout | None:
        """Prepares the return of a connection; None if it has no checkout."""
        state: WorkState | None = vars(connection).get(_STATE)
        checkout = None if state is None else state.checkout
        if checkout is None:
            return None
        if checkout.hold is not None:
            checkout.hold.begin()
        if checkout.must_discard:
            self.figures.invalidated()
            self._runner.retire(connection)
        return checkout

    def after_return(self, connection: Any, checkout: PoolCheckout) -> None:
        """Releases the slots of a checkout, once."""
        state: WorkState | None = vars(connection).get(_STATE)
        if state is not None and state.checkout is checkout:
            state.checkout = None
            if connection.closed:
                state.closed()
        checkout.connection = _gone
        checkout.release_slots()
        self.checkouts.remove(checkout)

    def is_revoked(self, connection: Any) -> bool:
        """True if a connection that its user returns was taken back."""
        state: WorkState | None = vars(connection).get(_STATE)
        hold = None if state is None or state.checkout is None else state.checkout.hold
        return hold is not None and hold.revoked

    def _dropped(self, checkout: PoolCheckout, _: object) -> None:
        """Ends a checkout whose connection was garbage collected."""
        checkout.release_slots()
        self.checkouts.remove(checkout, dropped=True)
        self.figures.closed()
        if not self._pool.closed and os.getpid() == self._process:
            run_later(
                partial(replace_lost_connection, self._pool, self._loop), 0.0
            )  # a lock may be held here

    def raise_no_connection(self, error: Exception) -> NoReturn:
        """Raises the guard's error for a caller who has got no connection."""
        enforces = self._gate.core.enforces
        if isinstance(error, psycopg_pool.TooManyRequests) and enforces:
            raise self._gate.count_refusal("bulkhead_full") from error
        if isinstance(error, psycopg_pool.PoolTimeout | CallTimeoutError):
            self.figures.timed_out()
            if enforces:
                seconds = error.timeout if isinstance(error, CallTimeoutError) else self._pool.timeout
                raise note_guard_error(PoolTimeoutError(self.guard.name, seconds)) from error
        raise error

    def resized(self) -> None:
        """Follows the pool's new size with the guard's slots."""
        size = self._pool.max_size
        if size == self._size:
            return  # a number of slots that was set by hand stays
        self._size = size
        slots = size if self._asked is None else min(self._asked, size or self._asked)
        if slots:
            set_slots(self.guard, slots)

    def check_home(self) -> None:
        """Checks that the pool belongs to this process and to the running event loop.

        Raises:
            ConfigurationError: It was opened elsewhere.
        """
        process = os.getpid()
        if self._process is None:
            self._process = process
        where = "process; open it after the fork" if self._process != process else None
        if self._is_async:
            running = asyncio.get_running_loop()
            if self._loop is None:
                workers = self._pool._workers  # noqa: SLF001 - asyncio tasks of the loop that opened it
                self._loop = workers[0].get_loop() if workers else running
            if self._loop is not running:
                where = "event loop; use it there, or open one here"
        if where is not None:
            raise ConfigurationError(
                f"guard {self.guard.name!r}: this pool of psycopg_pool was opened on another {where}"
            )

    def _count(self) -> Connections:
        pool = self._pool
        return Connections(len(self.registry.out), len(pool._pool), pool.min_size)  # noqa: SLF001


def _gone() -> None:
    """Stands for the reference to a connection that was returned."""
