"""PostgreSQL for Django, behind a guard: Django's own backend with psycopg 3, with or without its pool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from guardrails.errors import CallTimeoutError

if not is_psycopg3:
    raise ImportError(
        "psycopg 3 is missing, which Django's guarded database needs: pip install 'psycopg[binary]'"
    )

from guardrails.integrations.django._database.connection_notes import note_closed
from guardrails.integrations.django._database.wrapper import GuardedWrapper
from guardrails.integrations.django.postgresql._cursors import guarded
from guardrails.integrations.django.postgresql._pools import Source
from guardrails.integrations.django.postgresql._protection import PostgresProtection
from guardrails.integrations.django.postgresql._renewal import RenewableInPool

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(GuardedWrapper, RenewableInPool, base.DatabaseWrapper):  # type: ignore[misc]  # Django has no types
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

    kind = PostgresProtection
    question_limits = {"connect_timeout": 2}  # noqa: RUF012 - the minimum of libpq; never changed

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._source: Source | None = None
        super().__init__(*args, **kwargs)

    @staticmethod
    def is_open(connection: Any) -> bool:
        """See GuardedWrapper."""
        return not connection.closed

    @property
    def is_checked_out(self) -> bool:
        """True if the connection is in use: it has a slot, or was taken from a pool."""
        return super().is_checked_out or bool(self.settings_dict["OPTIONS"].get("pool"))

    @property
    def _keeps(self) -> bool:
        return super()._keeps and not self.settings_dict["OPTIONS"].get("pool")

    @property
    def pool(self) -> Any:
        """See Django. While it opens a connection, what opens it within its time stands here."""
        if self._source is not None:
            return self._source
        if self.settings_dict["OPTIONS"].get("pool") and self.alias not in self._connection_pools:
            # A pool keeps the wrapper that made it. This one's thread may end with its connection open: kept
            # alive, it would never release its slot.
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

    def _open(
        self, protection: Any, plain: Callable[[dict[str, Any]], Any], conn_params: dict[str, Any]
    ) -> tuple[Any, bool]:
        """See GuardedWrapper. The pool is the one that Django would take at this moment."""
        pool = self.pool
        if pool is None:
            connect = protection.connections.counted(self.Database.connect)
            get = partial(protection.direct.connect, connect, conn_params)
        else:
            protection.serve(self.alias, pool)
            get = partial(protection.borrow, pool)
        self._source = Source(get, pool)
        try:
            return plain(conn_params), pool is None
        finally:
            self._source = None

    def _ping(self) -> None:
        self.connection.execute("SELECT 1")  # on the driver's own cursor, as Django does it

    def lock_of(self, connection: Any) -> Any:
        """See Revocable. psycopg holds its lock while it works: also for work that the guard cannot see."""
        return connection.lock

    def note_revoked(self, connection: Any) -> None:
        """Gives a connection that was taken back to its pool, if it has one; called in another thread."""
        pool = getattr(connection, "_pool", None)
        if pool is not None:
            with suppress(Exception):  # the pool was closed meanwhile
                pool.putconn(connection)
            connection._pool = None  # noqa: SLF001 - it would open another connection for each return
        note_closed(connection)
        super().note_revoked(connection)

    def create_cursor(self, name: str | None = None) -> Any:
        """See Django."""
        cursor = super().create_cursor(name)
        return cursor if self._guarded is None else guarded(cursor, self)

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
