"""Shuts and reads a socket below its driver. Depends on descriptors only; must not import a driver."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

__all__ = ["abort", "client_port", "cut", "peer_of"]


def abort(transport: Any) -> None:
    """Aborts a transport, or shuts its socket if its event loop is closed. Never blocks or raises."""
    with suppress(Exception):
        try:
            transport.abort()
        except RuntimeError:
            cut(transport.get_extra_info("socket").fileno())


def cut(descriptor: int) -> None:
    """Shuts a socket down, which ends each read or poll on it. Never blocks or raises."""
    with suppress(Exception):
        # A duplicate, because closing a socket object would close the driver's descriptor under it,
        # and shutting down an SSLSocket would drop its encryption while another thread uses it.
        handle = socket.socket(fileno=os.dup(descriptor))
        with handle:
            handle.shutdown(socket.SHUT_RDWR)


def client_port(descriptor: int) -> int | None:
    """Returns the client's port of a socket; None for a Unix socket."""
    with socket.socket(fileno=os.dup(descriptor)) as handle:
        address = handle.getsockname()
    return address[1] if isinstance(address, tuple) else None


def peer_of(descriptor: int) -> str | None:
    """The address at the other end of a socket; None for a Unix socket."""
    with socket.socket(fileno=os.dup(descriptor)) as handle:
        peer = handle.getpeername()
    return str(peer[0]) if isinstance(peer, tuple) else None
