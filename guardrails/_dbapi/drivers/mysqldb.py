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

from guardrails._dbapi.drivers.mysql import PATIENCE, MySQLDriver, Target, with_backstop
from guardrails._dbapi.drivers.sockets import client_port, cut, identity_of, peer_of
from guardrails._pool.sessions import SessionId

__all__ = ["MySQLdb"]

_PATIENCE = math.ceil(PATIENCE)
_LIMITS = {"connect_timeout": _PATIENCE, "read_timeout": _PATIENCE, "write_timeout": _PATIENCE}

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
class _Order:
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

    def aim(self, connection: Any) -> _Order:
        """See Driver."""
        return _Order(self._sessions[connection], self._logins.get(connection, {}))

    def cancel(self, order: _Order, within: float) -> None:  # noqa: ARG002 - see PATIENCE
        """See Driver. Blocks, so it runs in a thread of its own."""
        target = order.session.target
        try:
            with closing(self._another(order)) as messenger:
                cursor = messenger.cursor()
                cursor.execute(target.question)
                if target.is_among(cursor.fetchall(), _session(messenger).target):
                    cursor.execute(target.order)
        except Exception as error:  # noqa: BLE001 - kill() follows
            self.cancel_failed(error)

    def _another(self, order: _Order) -> Any:
        """Opens a second connection to the same server."""
        where = {"init_command": _NO_COMMAND, **_LIMITS}
        # The address of this connection: its name may lead elsewhere now. A TLS certificate needs the name.
        if order.session.peer is not None and _CERTIFIED.isdisjoint(order.login):
            where["host"] = order.session.peer
        if self.second is not None:
            with suppress(Exception):  # the engine's connect may lead to another server
                return self.second.open(**where)
        return connect_again(**{**order.login, **where})

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
