"""Shuts and reads a socket below its driver. Depends on descriptors only; must not import a driver."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["abort", "client_port", "cut", "identity_of", "peer_of"]


def abort(transport: Any) -> None:
    """Aborts a transport, or shuts its socket if its event loop is closed. Never blocks or raises."""
    with suppress(Exception):
        try:
            transport.abort()
        except RuntimeError:
            cut(transport.get_extra_info("socket").fileno())


def cut(descriptor: int, identity: object = None) -> None:
    """Shuts a socket down, which ends each read or poll on it. Never blocks or raises.

    Args:
        descriptor: The socket's descriptor.
        identity: What `identity_of` has returned for it, where the descriptor may belong to another file by
            now; None if it cannot.
    """
    with suppress(Exception), _duplicate(descriptor) as handle:
        if identity is None or identity == _identity(handle):
            handle.shutdown(socket.SHUT_RDWR)


def client_port(descriptor: int) -> int | None:
    """Returns the client's port of a socket; None for a Unix socket."""
    with _duplicate(descriptor) as handle:
        address = handle.getsockname()
    return address[1] if isinstance(address, tuple) else None


def peer_of(descriptor: int) -> str | None:
    """The address at the other end of a socket; None for a Unix socket."""
    with _duplicate(descriptor) as handle:
        peer = handle.getpeername()
    return str(peer[0]) if isinstance(peer, tuple) else None


def identity_of(descriptor: int) -> object:
    """Returns a value that no other open socket of this process has."""
    with _duplicate(descriptor) as handle:
        return _identity(handle)


def _identity(handle: socket.socket) -> object:
    # Linux numbers its sockets. macOS does not, but it knows the local address.
    return os.fstat(handle.fileno()).st_ino, handle.getsockname()


@contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket]:
    """Yields a socket of our own for a driver's descriptor.

    Closing a socket object would close the driver's descriptor under it, and shutting down an SSLSocket would
    drop its encryption while another thread uses it.
    """
    duplicate = os.dup(descriptor)
    try:
        handle = socket.socket(fileno=duplicate)
    except OSError:  # the descriptor is another file's by now
        os.close(duplicate)
        raise
    with handle:
        yield handle
