"""PostgreSQL for Django, behind a guard. Knows Django's backend, and what it asks of a connection.

A slot is taken with the connection and held as long: from a request's first query until Django gives the
connection back when the request is over. That is how long Django keeps one of its pool from all others.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from django.db import utils
from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from guardrails._checks import Faults
from guardrails._guard import Guard, attach, sort_calls
from guardrails.errors import CallTimeoutError
from guardrails.integrations._checkouts import Checkout
from guardrails.integrations.django._names import named
from guardrails.integrations.django.postgresql._cursors import ENDINGS, WorkingCursor
from guardrails.integrations.django.postgresql._pools import FromPool, LendingPool
from guardrails.integrations.sqlalchemy._drivers.psycopg import Psycopg
from guardrails.integrations.sqlalchemy._work import Worker

__all__ = ["DatabaseWrapper"]

if not is_psycopg3:
    raise ImportError(
        "psycopg 3 is missing, which Django's guarded database needs: pip install 'psycopg[binary]'"
    )

_ANSWERS = tuple(
    getattr(errors, name)
    for errors in (base.Database, utils)
    for name in ("IntegrityError", "ProgrammingError", "DataError", "NotSupportedError")
)
"""Errors that say something about the statement and prove that the database is alive: the driver's, and
Django's for them."""


def _as_it_is(connection: Any) -> Any:
    """The driver's own connection: Django has no other."""
    return connection


class _Checkout(Checkout):
    """One that a thread may leave behind when it ends with its connection open."""

    __slots__ = ()

    def __del__(self) -> None:
        self.give_back()


class _Protection:
    """What the connections of all threads to one database have in common.

    Attributes:
        most: How many there can be at once, or None.
        on: Whether the guard is still attached.
    """

    def __init__(self, guard: Guard, most: int | None) -> None:
        self.guard = guard
        self.most = most
        self.on = True
        driver = Psycopg() if most is None else FromPool()
        self.worker = Worker(guard, driver, _as_it_is, is_async=False, errors=_ANSWERS)

    def detach(self) -> None:
        """See Attachment."""
        self.on = False


_protections: dict[Guard, _Protection] = {}


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]  # Django has no types
    """Django's connection to PostgreSQL, with a guard in front of it and a deadline on its statements.

    ::

        DATABASES = {"default": {
            "ENGINE": "guardrails.integrations.django.postgresql",
            "NAME": "shop",
            "OPTIONS": {"guard": "shop.guards.db", "pool": {"max_size": 10}},
        }}

    ``OPTIONS["guard"]`` is a `Guard`, or its dotted name; ``OPTIONS["compartments"]`` is ``"declared"`` or
    ``"auto"``, as for an engine. Everything else is as in Django's own backend.

    Raises:
        ConfigurationError: There is no guard, or it has more slots than the pool has connections.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checkout: _Checkout | None = None
        self._lending: LendingPool | None = None
        self._protection = self._protect()

    def _protect(self) -> _Protection:
        options = self.settings_dict["OPTIONS"]
        faults = Faults(f"DATABASES[{self.alias!r}]")
        guard = named(f"DATABASES[{self.alias!r}]: OPTIONS['guard']", options.get("guard"))
        if not isinstance(guard, Guard):
            faults.add("OPTIONS['guard']", guard, "a Guard or its dotted name")
            faults.raise_if_any()
        if guard not in _protections:
            compartments = options.get("compartments", "declared")
            faults.choice("OPTIONS['compartments']", compartments, ("declared", "auto"))
            pool = super().pool
            most = None if pool is None else pool.max_size
            slots = guard.snapshot().max_concurrent_calls
            faults.count(f"the slots of guard {guard.name!r}", slots, most=most)
            faults.raise_if_any()
            _protections[guard] = protection = _Protection(guard, most)
            if compartments == "auto":
                sort_calls(guard)
            attach(guard, protection)
        return _protections[guard]

    # --- connections ---------------------------------------------------------------------------

    def get_connection_params(self) -> dict[str, Any]:
        """See Django."""
        params: dict[str, Any] = super().get_connection_params()
        for ours in ("guard", "compartments"):
            params.pop(ours, None)
        return params

    @property
    def pool(self) -> Any:
        """See Django."""
        return self._lending or super().pool

    def ensure_connection(self) -> None:
        """See Django. One that stays open between requests needs a slot in each of them."""
        if self.connection is not None and self._checkout is None and not self.closed_in_transaction:
            self._enter()
        super().ensure_connection()

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """See Django."""
        self._enter()
        protection, connect = self._protection, super().get_new_connection
        if not protection.on:
            return connect(conn_params)

        def open_one(seconds: float | None = None, **params: Any) -> Any:
            pool = super(DatabaseWrapper, self).pool
            if pool is None:
                return connect(params)
            self._lending = LendingPool(pool, seconds)
            try:
                return connect(conn_params)
            finally:
                self._lending = None

        try:
            return protection.worker.connect(open_one, {} if protection.most else conn_params)
        except BaseException:
            self._leave()
            raise

    def close_if_unusable_or_obsolete(self) -> None:
        """See Django, which calls it when a request is over."""
        super().close_if_unusable_or_obsolete()
        if not self.in_atomic_block:
            self._leave()

    def is_usable(self) -> bool:
        """See Django."""
        try:
            usable: bool = self._protection.worker.bounds(super().is_usable, (), self.connection)
        except CallTimeoutError:
            return False
        return usable

    def _close(self) -> None:
        try:
            super()._close()
        finally:
            self._leave()

    def _enter(self) -> None:
        protection = self._protection
        if protection.on:
            checkout = _Checkout(protection.guard)
            checkout.take_slots()
            self._checkout = checkout

    def _leave(self) -> None:
        checkout, self._checkout = self._checkout, None
        if checkout is not None:
            if not self._protection.on:
                checkout.slots.clear()  # the guard has forgotten them
            checkout.give_back()

    # --- work on them ----------------------------------------------------------------------------

    def create_cursor(self, name: str | None = None) -> Any:
        """See Django."""
        return WorkingCursor(super().create_cursor(name), self._step, streams=name is not None)

    def _configure_connection(self, connection: Any) -> Any:
        return self._protection.worker.bounds(super()._configure_connection, (connection,), connection)

    def _commit(self) -> None:
        if self.connection is not None:
            self._work(super()._commit, commit=True)

    def _rollback(self) -> None:
        if self.connection is not None:
            # A connection that is cut rolls back as well.
            with suppress(CallTimeoutError):
                self._work(super()._rollback, ending=True)

    def _step(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._work(partial(call, *args, **kwargs), ending=name in ENDINGS)

    def _work(self, call: Callable[[], Any], *, ending: bool = False, commit: bool = False) -> Any:
        run, checkout = self._protection.worker.run, cast("Any", self._checkout)
        if not self._protection.on:
            return call()
        try:
            return run(call, (), self.connection, checkout, ending=ending, commit=commit)
        except CallTimeoutError:
            self._drop()
            raise

    def _drop(self) -> None:
        """Gives up a connection whose statement was told to stop: late, that may hit the next one."""
        with suppress(Exception):
            self.connection.close()
        self.close()
        # Or Django would open another one, to end the transaction that ended with this one.
        self.closed_in_transaction = True
