"""The limit of work under way: what ends it, and how it tells that it was ended."""

from __future__ import annotations

from typing import Protocol

from guardrails._runtime.scope import Client

__all__ = ["NO_LIMIT", "ClientLimit", "Limit"]


class Limit(Protocol):
    """Work under way, with its deadline."""

    @property
    def late(self) -> bool:
        """True once the deadline has passed, cancelled or not."""

    def end(self) -> bool:
        """Ends the limit; True if the work was cancelled: its connection must not be used again."""

    def failed(self, error: BaseException) -> bool:
        """Ends the limit of work that raised; True if its cancellation was the reason."""


class ClientLimit(Limit, Protocol):
    """The limit of work that may end sooner than at its deadline.

    Attributes:
        client: The client that the work ends with; `GONE` if it was stopped for that.
    """

    client: Client | None

    def end_with(self, client: Client) -> None:
        """Lets the work end as soon as the client of the request has left."""


class _NoLimit:
    late = False

    def end(self) -> bool:
        return False

    def failed(self, error: BaseException) -> bool:  # noqa: ARG002 - see Limit
        return False


NO_LIMIT: Limit = _NoLimit()
"""The limit of work that may take any time."""
