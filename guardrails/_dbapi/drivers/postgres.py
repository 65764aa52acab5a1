"""PostgreSQL's SQLSTATEs and backstop, for all of its drivers.

Depends on the base class of drivers; must not import a driver.
"""

from __future__ import annotations

import logging
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from guardrails._dbapi.drivers.plain import Plain
from guardrails.errors import ConfigurationError

__all__ = ["SOURCE", "PostgresDriver", "refuses_settings", "server_failed"]

_log = logging.getLogger("guardrails")

_LIMIT = "statement_timeout"

_LOST_CLIENT = {
    "client_connection_check_interval": "1000",  # milliseconds; PostgreSQL 14 and later
    "tcp_keepalives_idle": "30",  # seconds; together with the next two a minute, where the default is hours
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
"""Settings with which the server ends the statements of a lost client. It checks once a second if the socket
was closed, and a client that answers no TCP keepalive for a minute is lost. Statements of a connected client
are not ended, so no statement needs an exception, and a connection that outlives its guard may keep them."""

_REFUSALS = ("startup", "option", "parameter", *_LOST_CLIENT, _LIMIT)
"""Words in the error of a server or pooler that does not know a setting or does not allow it."""

_ELSEWHERE = ("conninfo", "dsn", "service")
"""Arguments in which libpq may receive ``options`` that are not visible here."""

_FAULTS = {
    "08": "connection",
    "53": "insufficient resources: memory, disk, connections",
    "57": "operator intervention: shutdown, crash, cancelled by an administrator or a server's limit",
    "58": "system: input and output",
    "F0": "configuration file",
    "XX": "internal, or corrupted data",
}
"""Classes of SQLSTATE that are the server's fault. Every other one is an answer of a healthy server about the
statement, a transaction or a privilege."""

_ANSWERS = {
    "53400": "a limit set for this session, such as temp_file_limit",
    "57P05": "the session was idle for longer than it may be",
}
"""States of those classes that are not the server's fault."""


_READ_ONLY = "25006"
_DEFAULT_READ_ONLY = "default_transaction_read_only"
_LOGIN_REFUSED = "28"
_TOO_MANY_CONNECTIONS = "53300"

_BY_THE_USER = ("read_only", "readonly")
"""Attributes of connections that make the transactions read-only."""

_READ_ONLY_HOSTS = frozenset({"read-only", "standby", "prefer-standby"})
"""Values of ``target_session_attrs`` that ask for a server without writes."""

_OWN_SOURCES = frozenset({"client", "database", "database user", "session", "user"})
"""Sources of a setting that the user, and not the server's administrator, has chosen."""

SOURCE = f"SELECT source FROM pg_settings WHERE name = '{_DEFAULT_READ_ONLY}'"  # noqa: S608 - a constant

_LOGIN_WORDS = (
    "authentication failed",
    "no password supplied",
    "pg_hba.conf",
    "is not permitted to log in",
    'role "',
)
"""libpq reports no state for a failed connect, so its words tell. Another language is not understood."""


_CROWDED_WORDS = ("too many clients", "too many connections", "connection slots are reserved")
"""Likewise, of a server without a connection for this user."""


def server_failed(sqlstate: object) -> bool | None:
    """True if the state means a fault of the server; None without a state."""
    if not isinstance(sqlstate, str) or len(sqlstate) < 2:  # noqa: PLR2004 - the class is two letters
        return None
    return sqlstate[:2] in _FAULTS and sqlstate not in _ANSWERS


class PostgresDriver(Plain):
    """Base class of PostgreSQL's drivers."""

    backstop_on_request = True  # nothing can lift it for one statement without a round trip

    def __init__(self) -> None:
        self._refused = 0
        self._chosen: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    def open(
        self,
        connect: Callable[..., Any],
        arguments: dict[str, Any],
        seconds: float,  # noqa: ARG002 - the caller limits its wait
        backstop: float | None,
    ) -> Any:
        """See Driver. The settings are in the start-up packet; one refused once is not sent again."""
        for refused, settings in self._offers(connect, arguments, backstop):
            try:
                connection = connect(**settings)
            except Exception as error:
                if settings is arguments or not refuses_settings(error):
                    raise
            else:
                self._note_refused(refused, limited=backstop is not None)
                self._note_choice(connection)
                return connection
        raise AssertionError  # the last offer is empty

    def _offers(
        self, connect: Callable[..., Any], arguments: dict[str, Any], backstop: float | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the arguments to connect with, the richest first, each with the number of those refused."""
        limit = {} if backstop is None else {_LIMIT: str(_milliseconds(backstop))}
        offers = [{**_LOST_CLIENT, **limit}, *([limit] if limit else []), {}]
        for refused, offer in enumerate(offers[self._refused :], self._refused):
            yield refused, self._with_settings(connect, arguments, offer)

    def allow(self, statement: str, seconds: float | None) -> str:  # noqa: ARG002 - there is no way
        """See Driver."""
        raise ConfigurationError(
            f"execution_options: guardrails_timeout must be at most the engine's backstop, got {seconds!r}"
        )

    def set_up(self, connection: Any) -> None:
        """See Driver. A session that was writable when it was opened was made read-only by a listener."""
        own = _own(connection)
        if self._reported(own, _DEFAULT_READ_ONLY) == "on":
            self._chosen.setdefault(own, True)

    def refuses_writes(self, error: BaseException, connection: Any) -> bool:
        """See Driver.

        The server reports whether it is a standby, and the default of its transactions. If neither is
        read-only, this transaction was made so.
        """
        if self.sqlstate(error) != _READ_ONLY:
            return False
        own = _own(connection)
        if self._chosen.get(own) or any(getattr(connection, name, None) is True for name in _BY_THE_USER):
            return False
        reported = {self._reported(own, name) for name in ("in_hot_standby", _DEFAULT_READ_ONLY)}
        if reported == {"off"}:
            return False
        wanted, options = self._asked_for(own)
        return wanted not in _READ_ONLY_HOSTS and _DEFAULT_READ_ONLY not in options

    def refuses_login(self, error: BaseException) -> bool:
        """See Driver."""
        state = self.sqlstate(error)
        if state is not None:
            return state.startswith(_LOGIN_REFUSED)
        said = str(error).lower()
        return any(word in said for word in _LOGIN_WORDS)

    def has_no_room(self, error: BaseException) -> bool:
        """See Driver."""
        state = self.sqlstate(error)
        if state is not None:
            return state == _TOO_MANY_CONNECTIONS
        said = str(error).lower()
        return any(word in said for word in _CROWDED_WORDS)

    @abstractmethod
    def sqlstate(self, error: BaseException) -> str | None:
        """The SQLSTATE of an error; None without one."""

    @abstractmethod
    def _reported(self, own: Any, name: str) -> str | None:
        """The value of a setting that the server reports by itself; None if it does not.

        Also None for a connection of another class, which a listener of ``do_connect`` may return.
        """

    @abstractmethod
    def _asked_for(self, own: Any) -> tuple[str, str]:
        """The ``target_session_attrs`` and the session's settings that the connection was opened with."""

    def _note_choice(self, connection: Any) -> None:
        """Notes for a session that begins read-only whether the user has chosen that."""
        own = _own(connection)
        if not self._is_read_only(own):
            return
        try:
            cursor = connection.cursor()
            cursor.execute(SOURCE)
            row = cursor.fetchone()
            cursor.close()
            connection.rollback()
            source = next(iter(row.values())) if isinstance(row, Mapping) else row[0]
        except Exception:  # noqa: BLE001 - a pooler may refuse it; then the server has decided
            return
        self._note_source(own, source)

    def _is_read_only(self, own: Any) -> bool:
        """True if a new session begins read-only; until `_note_source` the server has decided that."""
        if self._reported(own, _DEFAULT_READ_ONLY) != "on":
            return False
        self._chosen[own] = False
        return True

    def _note_source(self, own: Any, source: object) -> None:
        self._chosen[own] = source in _OWN_SOURCES

    def _note_refused(self, offers: int, *, limited: bool) -> None:
        """Stores the number of offers that were refused, and logs it."""
        if offers <= self._refused:
            return
        self._refused = offers
        if limited and offers > 1:
            _log.warning("the backstop is off: what is between us and PostgreSQL refuses %s", _LIMIT)
        else:
            _log.info("PostgreSQL does not look after lost clients: settings for that are refused")

    def _with_settings(
        self, connect: Callable[..., Any], arguments: dict[str, Any], offer: Mapping[str, str]
    ) -> dict[str, Any]:
        """Adds settings to the arguments, in libpq's format; returns the same object if there are none.

        The user's own settings stay: those in ``options``, and all where they are not visible.
        """
        words = any(getattr(connect, "args", ()))  # a connection string
        if words or "PGSERVICE" in os.environ or not arguments.keys().isdisjoint(_ELSEWHERE):
            return arguments
        # The argument replaces the variable, so it must include the variable's content.
        given = arguments.get("options") or os.environ.get("PGOPTIONS", "")
        if not isinstance(given, str):
            return arguments
        ours = [f"-c {name}={value}" for name, value in offer.items() if name not in given]
        return {**arguments, "options": " ".join([given, *ours]).strip()} if ours else arguments


def _own(connection: Any) -> Any:
    """The driver's own connection for SQLAlchemy's."""
    return getattr(connection, "driver_connection", connection)


def refuses_settings(error: Exception) -> bool:
    """True if the connect may have failed only because of these settings."""
    said = str(error).lower()
    return any(word in said for word in _REFUSALS)


def _milliseconds(seconds: float) -> int:
    """Whole milliseconds, rounded up: 0 would be no limit at all."""
    return math.ceil(seconds * 1000)
