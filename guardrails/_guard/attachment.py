"""What a guard asks of the pool that it is attached to. Must not import a pool or a guard."""

from __future__ import annotations

from typing import Any, Protocol

from guardrails._guard.pool_snapshot import PoolSnapshot

__all__ = ["Attachment", "Lease", "Upkeep"]


class Lease(Protocol):
    """A limit of a pool's connections that changes by itself."""

    def resize(self, ceiling: int) -> int:
        """Sets the largest limit; returns the limit that counts now."""

    def admit(self) -> None:
        """Waits a moment for the first limit, in a thread; see `PoolLease`."""

    async def admit_async(self) -> None:
        """Waits likewise without blocking the event loop."""

    def compare(self, sessions: int) -> None:
        """Is told how many connections of the pool's role the server has."""


class Upkeep(Protocol):
    """The idle connections of the pool that a guard is attached to."""

    @property
    def life(self) -> Any:
        """The rules of their life: a `PoolLife`."""

    def warm_up(self, seconds: float) -> int:
        """Opens connections until enough are idle."""

    async def warm_up_async(self, seconds: float) -> int:
        """Opens connections until enough are idle, without blocking the event loop."""

    def resized(self) -> None:
        """Closes the idle connections above the guard's limit."""

    @property
    def lease(self) -> Lease | None:
        """The lease that limits the pool's connections; None without a fleet."""


class Attachment(Protocol):
    """An integration's attachment of a guard to a pool."""

    @property
    def most(self) -> int | None:
        """The pool's capacity; None if it has no limit."""

    @property
    def upkeep(self) -> Upkeep | None:
        """The upkeep of the pool's idle connections; None if the pool looks after them itself."""

    def detach(self) -> None:
        """Restores the target."""

    def figures(self) -> PoolSnapshot:
        """Returns the figures of the pool now."""

    def status(self) -> Any:
        """Returns the figures with the holders of the connections: a `PoolStatus`."""
