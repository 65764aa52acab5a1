"""What a guard asks of the pool that it is attached to. Must not import a pool or a guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from guardrails._guard.pool_snapshot import PoolSnapshot

__all__ = ["Attachment", "FleetMember", "FleetPart", "Lease", "Upkeep"]


class Lease(Protocol):
    """A limit of a pool's connections, or of a guard's slots, that changes by itself.

    Attributes:
        ceiling: The largest limit.
    """

    ceiling: int

    def resize(self, ceiling: int) -> int:
        """Sets the largest limit; returns the limit that counts now."""

    def admit(self) -> None:
        """Waits a moment for the first limit, in a thread; see `PoolLease`."""

    async def admit_async(self) -> None:
        """Waits likewise without blocking the event loop."""

    def compare(self, sessions: int) -> None:
        """Is told how many connections of the pool's role the server has."""


class FleetMember(Protocol):
    """A guard's part in a fleet.

    Attributes:
        started: True once callers need not pass `admit` in this process.
        lease: Its lease on slots; None for a verdict alone.
    """

    started: bool

    @property
    def lease(self) -> Lease | None: ...

    def admit(self, wait: Callable[[Any], Any] | None, *, may_wait: bool) -> None:
        """Joins the fleet with the first call, and waits a moment for the first lease.

        Args:
            wait: Runs a coroutine to its end, for asyncio behind a greenlet; None waits in the thread.
            may_wait: False joins without waiting.
        """

    async def admit_async(self) -> None:
        """Joins the fleet without blocking the event loop."""


class FleetPart(Protocol):
    """What a fleet gives a guard to share: a budget, or a verdict."""

    def enroll(self, guard: Any) -> FleetMember:
        """Makes a guard a member."""


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
