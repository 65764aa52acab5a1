"""mysqlclient: KILL QUERY over a second connection, then the socket is shut.

Depends on mysqlclient; must not import another driver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from MySQLdb import connect as connect_again

from guardrails._dbapi.drivers.mysql import KILL_TIMEOUT, MySQLDriver, Target, with_backstop
from guardrails._dbapi.drivers.sockets import client_port, cut, identity_of, peer_of
from guardrails._pool.sessions import SessionId

__all__ = ["MySQLdb"]

_KILL_TIMEOUT = math.ceil(KILL_TIMEOUT)
_LIMITS = {"connect_timeout": _KILL_TIMEOUT, "read_timeout": _KILL_TIMEOUT, "write_timeout": _KILL_TIMEOUT}

_NO_COMMAND = "DO 0"
"""Replaces an ``init_command``, which may be neither empty nor None."""

_CERTIFIED = frozenset({"read_default_file", "read_default_group", "ssl", "ssl_mode"})
"""Arguments with which the server's name may have to match its certificate."""


@dataclass(frozen=True, slots=True)
class _Session:
    """The data of a connection that only its own thread may ask for.

    Attributes:
        target: The connection, as it should stand in the server's process list.
        peer: The server's address; None for a Unix socket.
        descriptor: The descriptor of its socket.
        identity: The identity of its socket.
    """

    target: Target
    peer: str | None
    descriptor: int
    identity: object


@dataclass(frozen=True, slots=True)
class _CancelTarget:
    """The data of a connection that a cancel request needs.

    Attributes:
        session: The connection.
        login: The arguments that it was opened with; empty if unknown.
    """

    session: _Session
    login: Mapping[str, Any] = field(repr=False)


class MySQLdb(MySQLDriver):
    """See Driver.

    A connection may be used by one thread at a time. Where another thread only asks for its number,
    mysqlclient 2.3 raises an error in either of the two, and older versions may crash. So it is asked once,
    by `note`.
    """

    reads_when_dropped = True

    def __init__(self) -> None:
        self._sessions: WeakKeyDictionary[Any, _Session] = WeakKeyDictionary()
        self._logins: WeakKeyDictionary[Any, Mapping[str, Any]] = WeakKeyDictionary()

    def open(
        self, connect: Callable[..., Any], arguments: dict[str, Any], seconds: float, backstop: float | None
    ) -> Any:
        """See Driver. ``read_timeout`` would limit every later read as well."""
        bounded = {"connect_timeout": math.ceil(seconds), **arguments}
        connection = connect(**with_backstop(bounded, backstop))
        self._logins[connection] = arguments
        return connection

    def note(self, connection: Any) -> None:
        """See Driver."""
        if connection not in self._sessions:
            with suppress(Exception):  # closed; or of another class, which a listener may return
                self._sessions[connection] = _session(connection)

    def cancel_target(self, connection: Any) -> _CancelTarget:
        """See Driver."""
        return _CancelTarget(self._sessions[connection], self._logins.get(connection, {}))

    def cancel(self, target: _CancelTarget, within: float) -> None:  # noqa: ARG002 - see KILL_TIMEOUT
        """See Driver. Blocks, so it runs in a thread of its own."""
        own = target.session.target
        try:
            with closing(self._open_cancel_connection(target)) as cancel_connection:
                cursor = cancel_connection.cursor()
                cursor.execute(own.question)
                if own.is_among(cursor.fetchall(), _session(cancel_connection).target):
                    cursor.execute(own.kill_statement)
        except Exception as error:  # noqa: BLE001 - kill() follows
            self.cancel_failed(error)

    def _open_cancel_connection(self, target: _CancelTarget) -> Any:
        """Opens a second connection to the same server."""
        where = {"init_command": _NO_COMMAND, **_LIMITS}
        # The address of this connection, as its name may lead elsewhere by now. A certificate needs the name.
        if target.session.peer is not None and _CERTIFIED.isdisjoint(target.login):
            where["host"] = target.session.peer
        if self.second is not None:
            with suppress(Exception):  # the engine's connect may lead to another server
                return self.second.open(**where)
        return connect_again(**{**target.login, **where})

    def kill(self, connection: Any) -> None:
        """See Driver."""
        session = self._sessions.get(connection)
        if session is not None:
            cut(session.descriptor, session.identity)

    def retire(self, connection: Any) -> None:
        """See Driver. A half-read result would read the rest when it is dropped."""
        self.kill(connection)

    def session_of(self, connection: Any) -> SessionId | None:
        """See Driver."""
        session = self._sessions.get(connection)
        return None if session is None else SessionId(session.target.number, session.target.port)

    def endpoint(self, connection: Any) -> tuple[str | None, str | None]:
        """See Driver."""
        session = self._sessions.get(connection)
        return self._logins.get(connection, {}).get("host"), None if session is None else session.peer


def _session(connection: Any) -> _Session:
    """Reads a connection that this thread owns."""
    descriptor = connection.fileno()
    target = Target(connection.thread_id(), client_port(descriptor))
    return _Session(target, peer_of(descriptor), descriptor, identity_of(descriptor))
