"""PostgreSQL for Django, behind a guard: Django's own backend, with an admission and a deadline in it.

A slot is held from the first work on a connection until Django has no more use for it in this request. What
Django does to look after connections between requests needs no slot.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Self, cast

from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.utils.functional import cached_property

from guardrails.errors import CallTimeoutError, ConnectionRevokedError, RejectedError

if not is_psycopg3:
    raise ImportError(
        "psycopg 3 is missing, which Django's guarded database needs: pip install 'psycopg[binary]'"
    )

from guardrails.integrations.django.postgresql._cursors import Steps, guard_cursor
from guardrails.integrations.django.postgresql._errors import ErrorWrapper
from guardrails.integrations.django.postgresql._pools import Source
from guardrails.integrations.django.postgresql._protection import Possession, Protection, protect
from guardrails.integrations.django.postgresql._revoking import Revocable
from guardrails.integrations.django.postgresql._upkeep import Renewable

__all__ = ["DatabaseWrapper"]

_LOST = (CallTimeoutError, ConnectionRevokedError)  # the guard's errors that cost a connection
_OURS = ("guard", "ask_server", "compartments", "leak_after", "max_idle_hold")
"""The options that are not the driver's."""


class DatabaseWrapper(Revocable, Renewable, base.DatabaseWrapper, Steps):  # type: ignore[misc]  # Django has no types
    """Django's connection to PostgreSQL, with a guard in front of it and a deadline on its statements.

    ::

        DATABASES = {"default": {
            "ENGINE": "guardrails.integrations.django.postgresql",
            "NAME": "shop",
            "OPTIONS": {"guard": "shop.guards.db", "pool": {"max_size": 10}},
        }}

    ``OPTIONS["guard"]`` is a `Guard`, or its dotted name; ``OPTIONS["compartments"]`` is ``"auto"``,
    ``"declared"`` or ``"none"``; ``"leak_after"`` and ``"max_idle_hold"`` are numbers of seconds or None, as
    for an engine. Everything else is as in Django's own backend. The connection with which Django creates
    and drops databases for tests is not guarded.

    Raises:
        ConfigurationError: There is no guard, or it has more slots than the pool has connections.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._possession: Possession | None = None
        self._note_closed: Callable[[], object] = bool
        self._source: Source | None = None
        self._at_savepoint = self._ends_savepoint = False
        self._protection: Protection | None = None
        if self.alias != NO_DB_ALIAS:
            self._protection = protect(self.alias, self.settings_dict)

    @property
    def is_checked_out(self) -> bool:
        """True if the connection is in use: it has a slot, or was taken from a pool."""
        return self._possession is not None or bool(self.settings_dict["OPTIONS"].get("pool"))

    @property
    def _checkout(self) -> Any:
        return None if self._possession is None else self._possession.checkout

    @property
    def _guarded(self) -> Protection | None:
        """The protection, while its guard is attached."""
        protection = self._protection
        return protection if protection is not None and protection.on else None

    def copy(self, alias: str | None = None) -> Self:
        """See Django. Both have the one guard, which cannot be copied."""
        guard = self.settings_dict["OPTIONS"].get("guard")
        settings = copy.deepcopy(self.settings_dict, {id(guard): guard})
        return type(self)(settings, self.alias if alias is None else alias)

    @cached_property  # type: ignore[untyped-decorator]  # likewise
    def wrap_database_errors(self) -> Any:
        """See Django."""
        return ErrorWrapper(self)

    # --- connections -----------------------------------------------------------------------------

    def get_connection_params(self) -> dict[str, Any]:
        """See Django."""
        params: dict[str, Any] = super().get_connection_params()
        for ours in _OURS:
            params.pop(ours, None)
        return params

    @property
    def pool(self) -> Any:
        """See Django. While it opens a connection, what opens it within its time stands here."""
        if self._source is not None:
            return self._source
        if self.settings_dict["OPTIONS"].get("pool") and self.alias not in self._connection_pools:
            # A pool keeps the wrapper that made it. This one's thread may end with its connection open: kept
            # alive, it would never give its slot back.
            options = {**self.settings_dict["OPTIONS"], "pool": None}  # its size is checked when it is opened
            maker = type(self)({**self.settings_dict, "OPTIONS": options}, self.alias)
            maker.settings_dict = self.settings_dict
            pool = super(DatabaseWrapper, maker).pool
            if self._protection is not None:
                self._protection.connections.count_in(pool)
            return pool
        return super().pool

    def close_pool(self) -> None:
        """See Django, which would make a pool in order to close it."""
        if self.alias in self._connection_pools:
            super().close_pool()

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """See Django. The pool is the one that Django would take at this moment."""
        protection = self._guarded
        if protection is None:
            return super().get_new_connection(conn_params)
        pool = self.pool
        if pool is None:
            get = partial(protection.direct.connect, self.Database.connect, conn_params)
        else:
            protection.serve(self.alias, pool)
            get = partial(protection.borrow, pool)
        self.admit()
        self._source = Source(get, pool)
        started = protection.registry.figures.clock()
        try:
            connection = super().get_new_connection(conn_params)
        except BaseException:
            self._leave()
            raise
        finally:
            self._source = None
        self._note_closed = protection.connections.add(self, connection, None if pool else started)
        protection.handed_out(self._possession)
        return connection

    def close_if_health_check_failed(self) -> None:
        """See Django, which calls it before the first work of a request: the check is work already."""
        if self.connection is not None and self.health_check_enabled and not self.health_check_done:
            self.admit()
        super().close_if_health_check_failed()

    def close_if_unusable_or_obsolete(self) -> None:
        """See Django, which calls it before and after each request."""
        try:
            super().close_if_unusable_or_obsolete()
        finally:
            if not self.in_atomic_block:
                self._leave()

    def is_usable(self) -> bool:
        """See Django. No slot is needed; a check that fails or is slow is evidence."""
        protection = self._guarded
        if protection is None or self.connection is None:
            return bool(super().is_usable())
        checkout = cast("Any", self._checkout)
        try:
            protection.direct.run(self._ping, (), self.connection, checkout, ending=True)
        except (self.Database.Error, *_LOST):
            return False
        return True

    def _ping(self) -> None:
        self.connection.execute("SELECT 1")  # on the driver's own cursor, as Django does it

    def _close(self) -> None:
        protection = self._guarded
        try:
            if protection is None or self.connection is None:
                super()._close()
            else:
                # A pool ends an open transaction first. A connection that is cut meanwhile is closed as well.
                with suppress(*_LOST):
                    protection.direct.bounds(super()._close, (), self.connection)
        finally:
            self._note_closed()
            self._leave()

    def admit(self) -> None:
        """See Steps. Takes a slot for the work to come, unless there is one."""
        protection = self._guarded
        if protection is not None and self._possession is None:
            self._possession = protection.enter(self)
            if self.connection is not None:
                protection.handed_out(self._possession)

    def _leave(self) -> None:
        possession, self._possession = self._possession, None
        if possession is not None:
            possession.protection.leave(possession.checkout)

    # --- work on them ----------------------------------------------------------------------------

    def create_cursor(self, name: str | None = None) -> Any:
        """See Django."""
        cursor = super().create_cursor(name)
        return cursor if self._guarded is None else guard_cursor(cursor, self)

    def step(
        self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, ending: bool = False
    ) -> Any:
        """See Steps."""
        if kwargs:
            call = partial(call, **kwargs)
        return self._work(call, args, ending=ending or self._ends_savepoint)

    def _configure_connection(self, connection: Any) -> Any:
        protection, configure = self._guarded, super()._configure_connection
        if protection is None:
            return configure(connection)
        ours = connection is self.connection  # or a pool's, in a thread of the pool
        checkout = cast("Any", self._checkout if ours else None)
        try:
            return protection.direct.run(configure, (connection,), connection, checkout, ending=True)
        except CallTimeoutError:
            if ours:
                self._drop(protection)
            raise

    def _commit(self) -> None:
        if self.connection is not None:
            try:
                self._work(super()._commit, (), commit=True)
            except RejectedError:
                self._rollback()  # which Django does for the database's own errors only
                raise

    def _rollback(self) -> None:
        if self.connection is not None:
            # A connection that is cut rolls back as well.
            with suppress(*_LOST):
                self._work(super()._rollback, (), ending=True)

    def _savepoint(self, sid: str) -> None:
        self._with_savepoint(super()._savepoint, sid, ending=False)

    def _savepoint_commit(self, sid: str) -> None:
        self._with_savepoint(super()._savepoint_commit, sid, ending=True)

    def _savepoint_rollback(self, sid: str) -> None:
        with suppress(*_LOST):  # the whole transaction is rolled back then
            self._with_savepoint(super()._savepoint_rollback, sid, ending=True)

    def _with_savepoint(self, call: Callable[[str], None], sid: str, *, ending: bool) -> None:
        self._at_savepoint, self._ends_savepoint = True, ending
        try:
            call(sid)
        finally:
            self._at_savepoint = self._ends_savepoint = False

    def _work(
        self, call: Callable[..., Any], args: tuple[Any, ...], *, ending: bool = False, commit: bool = False
    ) -> Any:
        protection = self._guarded
        if protection is None:
            return call(*args)
        if self._checkout is None and not ending and not commit:
            self.admit()
        checkout = cast("Any", self._checkout)
        try:
            return protection.direct.run(
                call,
                args,
                self.connection,
                checkout,
                ending=ending,
                commit=commit,
                proves=not self._at_savepoint,
            )
        except BaseException as error:
            if isinstance(error, _LOST) or (checkout is not None and checkout.must_discard):
                self._drop(protection)
            raise

    def _drop(self, protection: Protection) -> None:
        """Closes a connection for good: a late cancel would hit the next user, or psycopg lost its state."""
        if not self._is_revoked:
            protection.registry.figures.invalidated()
            protection.direct.retire(self.connection)
        self._forget()
