"""The list of one pool's checkouts, with their figures, holders and reports of leaks.

Depends on the guard; must not import a pool or a driver. SQLAlchemy's pools, which know one connection by
several proxies, have a list of their own.
"""

from __future__ import annotations

from guardrails._guard.guard import Guard
from guardrails._pool.checkout import HeldCheckout
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.pool_reports import PoolReports
from guardrails.errors import BulkheadFullError, RejectedError

__all__ = ["Checkouts"]


class Checkouts:
    """The checkouts of one pool that have not been returned.

    Args:
        guard: The pool's guard.
        leak_after: Seconds after which a connection on which nothing runs is reported; None is never.
        is_async: Whether asyncio tasks take the connections.
        system: The kind of server; see `PoolFigures`.

    Attributes:
        registry: The holders of the connections.
        figures: The pool's figures.
    """

    def __init__(self, guard: Guard, leak_after: float | None, *, is_async: bool, system: str) -> None:
        self._out: dict[int, HeldCheckout] = {}
        self.registry = HolderRegistry(guard, self._out, leak_after, is_async=is_async, system=system)
        self.figures = self.registry.figures
        self._reports = PoolReports(self.registry)

    def add(self, checkout: HeldCheckout) -> None:
        """Adds a checkout."""
        self._out[id(checkout)] = checkout
        if not self._reports.watching:
            self._reports.watch()

    def remove(self, checkout: HeldCheckout, *, dropped: bool = False) -> None:
        """Removes a checkout whose slots were released.

        Args:
            checkout: The checkout.
            dropped: True if its holder has dropped the connection without returning it.
        """
        known = self._out.pop(id(checkout), None)
        self.figures.returned(checkout)
        if known is not None and dropped:
            self._reports.dropped(checkout)
        elif known is not None and checkout.reported:
            self._reports.returned(checkout)

    def refused(self, refusal: RejectedError) -> None:
        """Notes a caller that gets no connection."""
        if isinstance(refusal, BulkheadFullError):
            self._reports.refused()

    def clear(self) -> None:
        """Forgets all checkouts: the guard is detached."""
        self._out.clear()
