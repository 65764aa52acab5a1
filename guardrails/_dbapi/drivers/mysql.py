"""MySQL's and MariaDB's error codes, the backstop, and the KILL QUERY of one statement.

Depends on SQL only; must not import a driver.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from guardrails._dbapi.drivers.plain import Plain

__all__ = ["KILL_TIMEOUT", "MySQLDriver", "Target", "server_failed", "with_backstop"]

KILL_TIMEOUT = 1.0
"""Seconds a KILL may take: more than the grace period, because the server works on for a lost client."""

_LIMIT_BEFORE = "@guardrails"
"""Session variable with the limit from before the backstop; NULL, as a number, where there is none."""

_OUT_OF_RESOURCES = {
    1021,  # disk full
    1037,  # out of memory
    1038,  # out of sort memory
    1040,  # too many connections
    1041,  # out of memory, or of threads
    1114,  # a table is full
    1135,  # cannot create a thread
    1203,  # too many connections of this user
    1226,  # this user has used up a limit
}
_CROWDED = {1040, 1203, 1226}
_STORAGE = {
    1016,  # cannot open a file
    1017,  # cannot find a file
    1023,  # error on close
    1024,  # error reading a file
    1026,  # error writing a file
    1030,  # the storage engine reports an error
    1034,  # a broken index
    1180,  # error during COMMIT
    1181,  # error during ROLLBACK
    1194,  # a table is marked as crashed
    1195,  # and could not be repaired
}
_STOPPED_BY_THE_SERVER = {
    1047,  # a Galera node that has lost its cluster
    1053,  # shutdown in progress
    1077,  # normal shutdown
    1079,  # shutdown complete
    1080,  # forcing a thread to close
    1129,  # this host is blocked
    1152,  # aborted connection
    1158,  # network errors, to 1161
    1159,
    1160,
    1161,
    1184,  # aborted connection
    1317,  # KILL QUERY
    1927,  # KILL
    1969,  # MariaDB: max_statement_time
    3024,  # MySQL: max_execution_time
    4031,  # MySQL: idle for too long
}
_SEEN_BY_THE_CLIENT = {
    2001,  # cannot create a socket, a connection, a TCP socket
    2002,
    2003,
    2004,
    2005,  # unknown host
    2006,  # server has gone away
    2009,  # wrong host info
    2012,  # error in the handshake
    2013,  # connection lost during a query
    2026,  # TLS error
    2055,  # connection lost at a named place
}
_FAULTS = frozenset(_OUT_OF_RESOURCES | _STORAGE | _STOPPED_BY_THE_SERVER | _SEEN_BY_THE_CLIENT)
"""Every other code is an answer about the statement from a healthy server.

Examples are 1205 (lock wait timeout), 1213 (deadlock), 1062 (duplicate), 1064 (syntax) and 1792 (the
transaction was set read-only).
"""

_READ_ONLY_MODE = 1836
_PREVENTED_BY_OPTION = 1290
_REFUSED_LOGINS = frozenset(
    {
        1044,  # no right to use the database
        1045,  # wrong user or password
        1698,  # likewise, without a password
        1862,  # the password has expired
        3118,  # the account is locked
    }
)


def server_failed(error: BaseException) -> bool | None:
    """True if an error's code means a fault of the server; None without a code.

    As in PyMySQL, the code is the first argument, and 0 where there is none.
    """
    code = error.args[0] if error.args else None
    return code in _FAULTS if isinstance(code, int) and code else None


def with_backstop(arguments: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    """Adds a limit for each statement of the session to the arguments of a connect.

    It costs one round trip when a connection is opened. A lower limit of the server stays. So does the
    user's ``init_command``, in which the user must then set a limit.
    """
    if seconds is None or arguments.get("init_command"):
        return arguments
    limit = (
        f"SESSION max_statement_time = IF(@@max_statement_time BETWEEN 0.000001 AND {seconds:f}, "
        f"@@max_statement_time, {seconds:f})"
    )
    # Only MariaDB reads such a comment; MySQL has no limit that covers more than SELECT.
    command = f"SET {_LIMIT_BEFORE} = 0 /*M!100100 + @@max_statement_time, {limit} */"
    return {**arguments, "init_command": command}


class MySQLDriver(Plain):
    """The part of the drivers of MySQL and MariaDB that is the same for all."""

    backstop_spans_streams = True

    def allow(self, statement: str, seconds: float | None) -> str:
        """See Driver. To MySQL the added limit is a comment.

        None restores the limit from before the backstop: for MariaDB a stream is one statement until its last
        row is read.
        """
        limit = f"COALESCE({_LIMIT_BEFORE} + 0, @@max_statement_time)" if seconds is None else f"{seconds:f}"
        return f"/*M!100100 SET STATEMENT max_statement_time = {limit} FOR */ {statement}"

    def failed(self, error: BaseException) -> bool | None:
        """See Driver."""
        return server_failed(error)

    def refuses_writes(self, error: BaseException, connection: Any) -> bool:  # noqa: ARG002 - the code tells
        """See Driver. The option's name in the text is the same in every language."""
        code, *text = error.args or (None,)
        return code == _READ_ONLY_MODE or (
            code == _PREVENTED_BY_OPTION and any(word in str(text) for word in ("read-only", "read_only"))
        )

    def refuses_login(self, error: BaseException) -> bool:
        """See Driver."""
        return bool(error.args) and error.args[0] in _REFUSED_LOGINS

    def has_no_room(self, error: BaseException) -> bool:
        """See Driver."""
        return bool(error.args) and error.args[0] in _CROWDED


@dataclass(frozen=True, slots=True)
class Target:
    """A connection, as it should stand in the server's process list.

    Attributes:
        number: The server's thread id; unique until the server restarts.
        port: The client's port; None for a Unix socket.
    """

    number: int
    port: int | None

    @property
    def question(self) -> str:
        """The query that reads, on a second connection, the host and port of both."""
        return (
            "SELECT id, host FROM information_schema.processlist "  # noqa: S608 - a number of the server's
            f"WHERE id = CONNECTION_ID() OR (id = {self.number:d} AND command <> 'Sleep')"
        )

    @property
    def kill_statement(self) -> str:
        """The statement that ends the current statement of the target."""
        return f"KILL QUERY {self.number:d}"

    def is_among(self, rows: Iterable[tuple[int, str]], asker: Target) -> bool:
        """True if the rows contain this connection, running a statement.

        The second connection may have reached another server behind the same address, or a restarted one,
        where the number belongs to another client. So both connections must come from one host. Where the
        server sees the client's real ports, the port must match too.
        """
        hosts = {number: host.rpartition(":") for number, host in rows}
        if self.number not in hosts or asker.number not in hosts:
            return False
        here, _, port = hosts[self.number]
        ours, _, seen_port = hosts[asker.number]
        if here != ours:
            return False
        return port == str(self.port) or seen_port != str(asker.port)
