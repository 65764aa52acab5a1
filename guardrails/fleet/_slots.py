"""A guard without a pool in a fleet: its slots are a part of a budget. Depends on leases.

The fast paths of its gate stay closed until its first call, which joins the fleet. So a process that only
forks workers is no worker, and no later call pays for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from guardrails._core.gate import LOCK_FREE
from guardrails._guard.guard import Guard
from guardrails._runtime.fork import renew_after_fork
from guardrails.fleet._pool_lease import PoolLease

__all__ = ["Follower", "SlotMember"]


class Follower(Protocol):
    """What follows a fleet."""

    def join(self) -> None:
        """Begins to ask the store; repeated calls do nothing."""

    def leave(self) -> None:
        """Ends asking the store."""


class SlotMember:
    """See FleetMember.

    Args:
        guard: The guard.
        lease: Its lease on slots; None without a budget.
        followers: What else follows the fleet: its verdict, its orders.
    """

    def __init__(self, guard: Guard, lease: PoolLease | None, followers: Sequence[Follower]) -> None:
        self.lease = lease
        self._followers = followers
        self._gate = guard.call_settings.gates[-1]
        self.reset_in_child()
        renew_after_fork(self)

    def admit(self, wait: Callable[[Any], Any] | None, *, may_wait: bool) -> None:
        """See FleetMember."""
        self._join()
        try:
            if self.lease is not None and may_wait:
                self.lease.admit(wait)
            elif self.lease is not None:
                self.lease.join()
        finally:
            self._start()

    async def admit_async(self) -> None:
        """See FleetMember."""
        self._join()
        try:
            if self.lease is not None:
                await self.lease.admit_async()
        finally:
            self._start()

    def leave(self) -> None:
        """Leaves the fleet."""
        if self.lease is not None:
            self.lease.leave()
        for each in self._followers:
            each.leave()

    def _join(self) -> None:
        for each in self._followers:
            each.join()

    def _start(self) -> None:
        if self.lease is None or self.lease.started:
            self.started = True
            self._set_fast(LOCK_FREE)

    def _set_fast(self, fast: bool) -> None:  # noqa: FBT001 - a setter
        self._gate.core.fast = fast
        self._gate.step(self._gate.core.refresh)

    # --- forks -----------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:  # noqa: ARG002
        """See ForkAware."""
        return True

    def unpause(self) -> None:
        """See ForkAware."""

    def reset_in_child(self) -> None:
        """Lets the first call of a child process join. At first, too."""
        self.started = False
        self._gate.core.fast = False
        self._gate.core.close_fast_paths()
