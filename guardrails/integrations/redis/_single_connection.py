"""The connection of a client with ``single_connection_client``, in a child process. Must not import pools."""

from __future__ import annotations

from typing import Any

from guardrails._runtime.fork import renew_after_fork

__all__ = ["SingleConnection"]


class SingleConnection:
    """Closes the connection of a single-connection client in a child process.

    redis-py checks only its pools for a fork, so parent and child would read each other's replies.

    Args:
        connection: The client's connection.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        renew_after_fork(self)

    def pause(self, seconds: float) -> bool:  # noqa: ARG002
        """See ForkAware."""
        return True

    def unpause(self) -> None:
        """See ForkAware."""

    def reset_in_child(self) -> None:
        """Leaves the socket to the parent: the child's next command opens another one, in a new slot."""
        self._connection.disconnect()
        if self._connection.checkout is not None:
            self._connection.checkout.slots.clear()
