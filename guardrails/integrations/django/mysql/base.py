"""MySQL and MariaDB for Django, behind a guard: Django's own backend with mysqlclient, or with PyMySQL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from django.db.backends.mysql import base

from guardrails._dbapi.drivers import Driver, find_driver, unsupported
from guardrails.errors import RejectedError
from guardrails.integrations.django._database.protection import Protection
from guardrails.integrations.django._database.wrapper import LOST, GuardedWrapper
from guardrails.integrations.django.mysql._cursors import MySQLSteps, guarded

__all__ = ["DatabaseWrapper"]

_IS_PYMYSQL = base.Database.__name__ == "pymysql"
"""True after ``pymysql.install_as_MySQLdb()``."""


class MySQLProtection(Protection):
    """See Protection."""

    system = "mysql"

    @staticmethod
    def dbapi() -> Any:
        """See Protection."""
        return base.Database

    @staticmethod
    def descriptor_of(connection: Any) -> int:
        """See Protection."""
        descriptor: int = connection._sock.fileno() if _IS_PYMYSQL else connection.fileno()  # noqa: SLF001
        return descriptor

    @staticmethod
    def new_driver() -> Driver:
        """See Protection."""
        name = "pymysql" if _IS_PYMYSQL else "mysqldb"
        driver = find_driver(name, is_async=False)
        if driver is None:
            raise unsupported(name)
        return driver


class DatabaseWrapper(GuardedWrapper, base.DatabaseWrapper, MySQLSteps):  # type: ignore[misc]  # Django has no types
    """Django's connection to MySQL or MariaDB, with a guard in front of it and a deadline on its statements.

    ::

        DATABASES = {"default": {
            "ENGINE": "guardrails.integrations.django.mysql",
            "NAME": "shop",
            "OPTIONS": {"guard": "shop.guards.db"},
        }}

    ``OPTIONS`` are those of `guardrails.integrations.django.postgresql.base.DatabaseWrapper`, without a pool.
    Everything else is as in Django's own backend.

    Raises:
        ConfigurationError: There is no guard.
    """

    kind = MySQLProtection
    question_limits = {"connect_timeout": 1, "read_timeout": 1, "write_timeout": 1}  # noqa: RUF012 - never changed

    run_on_commit: list[Any]
    _is_connecting = False
    _has_ended = False
    """True if the last work was the end of a transaction, which has told its own errors."""

    @staticmethod
    def is_open(connection: Any) -> bool:
        """See GuardedWrapper."""
        return bool(connection.open)

    def connect(self) -> None:
        """See Django."""
        self._is_connecting = True
        try:
            super().connect()
        finally:
            self._is_connecting = False

    def _open(
        self,
        protection: Any,
        plain: Callable[[dict[str, Any]], Any],  # noqa: ARG002 - see `_connect`
        conn_params: dict[str, Any],
    ) -> tuple[Any, bool]:
        """See GuardedWrapper."""
        return protection.direct.connect(protection.connections.counted(_connect), conn_params), True

    def init_connection_state(self) -> None:
        """See Django."""
        self._neutrally(super().init_connection_state, ending=True)

    def _ping(self) -> None:
        if _IS_PYMYSQL:
            self.connection.ping(reconnect=False)  # older versions would open another session
        else:
            self.connection.ping()

    def create_cursor(self, name: str | None = None) -> Any:
        """See Django, whose cursor is a wrapper of the driver's."""
        wrapper = super().create_cursor(name)
        if self._guarded is not None:
            guarded(wrapper.cursor, base.Database.cursors, self)
        return wrapper

    def allow(self, statement: Any, *, streams: bool) -> Any:
        """See MySQLSteps."""
        protection = self._guarded
        if protection is None or not protection.direct.lifts_backstop:
            return statement
        seconds = protection.direct.time_in_scope(self._checkout)
        limit = protection.direct.allow("", seconds, streams=streams)
        return (limit if isinstance(statement, str) else limit.encode()) + statement

    def _work(self, call: Callable[..., Any], args: tuple[Any, ...], **how: Any) -> Any:
        self._has_ended = False
        return super()._work(call, args, **how)

    def _commit(self) -> None:
        try:
            super()._commit()
        finally:
            self._has_ended = True

    def _rollback(self) -> None:
        try:
            super()._rollback()
        finally:
            self._has_ended = True

    def _set_autocommit(self, autocommit: bool) -> None:  # noqa: FBT001 - Django's signature
        """Begins or ends a transaction, for which the server is asked."""
        change = partial(self._work, super()._set_autocommit, (autocommit,))
        if not autocommit or self._is_connecting:
            self._neutrally(change)
        elif self._has_ended:
            # What waits for the COMMIT is done even if the connection is lost.
            hooks = self.run_on_commit
            with suppress(*LOST):
                self._neutrally(change, ending=True)
            self.run_on_commit = hooks
        else:
            try:
                change(commit=True)  # MySQL commits what is open
            except RejectedError:
                self._rollback()  # otherwise the next change would commit it
                raise


def _connect(**params: Any) -> Any:
    # Equal for all threads, so that one may take the connection that another no longer waits for.
    return base.DatabaseWrapper.get_new_connection(None, params)
