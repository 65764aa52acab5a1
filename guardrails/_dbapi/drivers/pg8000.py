"""pg8000: a cancel request over a second connection, then the socket is shut.

Depends on pg8000; must not import another driver.
"""

from __future__ import annotations

import io
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from pg8000.core import CoreConnection
from pg8000.exceptions import DatabaseError, InterfaceError

from guardrails._dbapi.drivers.postgres import PostgresDriver, server_failed
from guardrails._dbapi.drivers.sockets import client_port, cut, peer_of
from guardrails._pool.sessions import SessionId

__all__ = ["PG8000"]

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_CANCEL_REQUEST = 80877102
_MOST_SECONDS = 2**31
"""Socket timeouts above it raise OverflowError."""


@dataclass(frozen=True, slots=True)
class _Target:
    """The data of a connection that a cancel request needs.

    Attributes:
        family: The address family of its socket.
        address: The server's address.
        key: The number of the server's process and its secret.
        context: The TLS settings of the connection; None without TLS.
        name: The server's name in its certificate.
    """

    family: int
    address: Any
    key: bytes = field(repr=False)
    context: ssl.SSLContext | None
    name: str | None


class _ShutFile(io.BytesIO):
    """Takes the place of the file of a socket that was shut; reading it is a network error.

    The frames of the driver's error keep the old file, which would keep the descriptor open until garbage is
    collected. ``close()`` of the connection flushes, so it closes the old file, in a thread that may block.
    """

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file

    def flush(self) -> None:
        with suppress(Exception):  # what stands in its buffer cannot be sent
            self._file.close()


class PG8000(PostgresDriver):
    """See Driver. pg8000 has public names neither for its socket nor for the key of a session."""

    sends_access_mode = True

    def __init__(self) -> None:
        super().__init__()
        self._hosts: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def open(
        self, connect: Callable[..., Any], arguments: dict[str, Any], seconds: float, backstop: float | None
    ) -> Any:
        """See Driver. pg8000's ``timeout`` also limits each later read, so it is set back."""
        own = arguments.get("timeout")
        bounded = {**arguments, "timeout": min(seconds, _MOST_SECONDS) if own is None else own}
        connection = super().open(connect, bounded, seconds, backstop)
        if isinstance(connection, CoreConnection):
            _socket(connection).settimeout(own)
            if not arguments.get("unix_sock"):
                self._hosts[connection] = arguments.get("host", "localhost")
        return connection

    def cancel_target(self, connection: Any) -> _Target:
        """See Driver."""
        own = _socket(connection)
        context, name = (own.context, own.server_hostname) if isinstance(own, ssl.SSLSocket) else (None, None)
        return _Target(own.family, own.getpeername(), bytes(_key(connection)), context, name)

    def cancel(self, target: _Target, within: float) -> None:
        """See Driver. Blocks, so it runs in a thread of its own."""
        try:
            with socket.socket(target.family, socket.SOCK_STREAM) as plain:
                plain.settimeout(within)
                plain.connect(target.address)
                with _encrypted(plain, target) as cancel_connection:
                    cancel_connection.sendall(
                        struct.pack("!ii", 8 + len(target.key), _CANCEL_REQUEST) + target.key
                    )
                    cancel_connection.recv(1)  # the server closes when it has carried out the request
        except Exception as error:  # noqa: BLE001 - kill() follows
            self.cancel_failed(error)

    def kill(self, connection: Any) -> None:
        """See Driver."""
        with suppress(Exception):  # closed meanwhile
            cut(_socket(connection).fileno())

    def retire(self, connection: Any) -> None:
        """See Driver. ``close()`` sends a last message, and raises if it cannot."""
        self.kill(connection)
        if not isinstance(file := connection._sock, _ShutFile):  # noqa: SLF001 - see the class
            connection._sock = _ShutFile(file)  # noqa: SLF001 - likewise

    def session_of(self, connection: Any) -> SessionId | None:
        """See Driver."""
        own = _socket(connection)
        return None if own is None else SessionId(_process(connection), client_port(own.fileno()))

    def note_access_mode(self, connection: Any, *, read_only: bool) -> None:
        """See Driver. The server reports the mode, and not who has chosen it."""
        self._chosen[connection] = read_only

    def failed(self, error: BaseException) -> bool | None:
        """See Driver."""
        state = self.sqlstate(error)
        # pg8000 wraps some errors of its socket in this text, and raises the others as they are.
        lost = isinstance(error, InterfaceError) and "network error" in str(error)
        return True if lost or isinstance(error, OSError) else server_failed(state)

    def unsent(self, error: BaseException) -> bool:
        """True for an error about a placeholder or a closed cursor; see Driver."""
        return isinstance(error, InterfaceError) and str(error).startswith(("Only %s", "Cursor closed"))

    def out_of_step(self, error: BaseException) -> bool:
        """See Driver. An error of the server is raised after its whole answer was read.

        A parameter that cannot be encoded is noticed after the first part of the statement was sent. The
        answer to it is unread, so that each later statement would return the rows of an earlier one. Errors
        of the socket are raised as they are, and are no disconnect to SQLAlchemy. A `DatabaseError` without
        the server's fields is about calls in a wrong order, such as a fetch without a result.
        """
        return not isinstance(error, DatabaseError) and not self.unsent(error)

    def sqlstate(self, error: BaseException) -> str | None:
        """See PostgresDriver. The arguments of a server's error are the fields of its message."""
        said = error.args[0] if isinstance(error, DatabaseError | InterfaceError) and error.args else None
        return said.get("C") if isinstance(said, dict) else None

    def endpoint(self, connection: Any) -> tuple[str | None, str | None]:
        """See Driver."""
        own = getattr(connection, "driver_connection", connection)
        used = _socket(own)
        return self._hosts.get(own), None if used is None else peer_of(used.fileno())

    def _reported(self, own: Any, name: str) -> str | None:
        if not isinstance(own, CoreConnection):
            return None
        value: str | None = own.parameter_statuses.get(name)
        return value

    def _asked_for(self, own: Any) -> tuple[str, str]:  # noqa: ARG002 - it keeps neither
        return "", ""

    def _with_settings(
        self,
        connect: Callable[..., Any],  # noqa: ARG002 - it takes no connection string
        arguments: dict[str, Any],
        offer: Mapping[str, str],
    ) -> dict[str, Any]:
        given = arguments.get("startup_params") or {}
        options = str(given.get("options", ""))
        ours = {name: value for name, value in offer.items() if name not in options}
        return {**arguments, "startup_params": {**ours, **given}} if ours else arguments


def _socket(connection: Any) -> Any:
    """The connection's socket; None once it is closed."""
    return connection._usock  # noqa: SLF001 - see PG8000


def _key(connection: Any) -> bytes:
    key: bytes = connection._backend_key_data  # noqa: SLF001 - see PG8000
    return key


def _process(connection: Any) -> int:
    return int.from_bytes(_key(connection)[:4], "big")


def _encrypted(plain: socket.socket, target: _Target) -> socket.socket:
    """The connection for a cancel request, with TLS if the target has it: the key is a secret."""
    if target.context is None:
        return plain
    plain.sendall(_SSL_REQUEST)
    if plain.recv(1) != b"S":
        raise ConnectionError("the server no longer takes TLS")
    return target.context.wrap_socket(plain, server_hostname=target.name)
