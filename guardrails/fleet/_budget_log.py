"""Warnings about one budget in the log, each kind at most once a minute. Depends on the records."""

from __future__ import annotations

import time

from guardrails._runtime.guard_log import log
from guardrails.fleet._records import Reply

__all__ = ["BudgetLog"]

_INTERVAL = 60.0
"""Seconds between two log entries about the same fault."""


class BudgetLog:
    """Warns of a budget that cannot be kept.

    Args:
        budget: Its name.
    """

    def __init__(self, budget: str) -> None:
        self._budget = budget
        self._next: dict[str, float] = {}

    def check(self, reply: Reply, minimum: int) -> None:
        """Warns if the workers disagree about the budget, or if it is too small for their floors.

        Args:
            reply: The store's reply.
            minimum: The floor of this worker.
        """
        if reply.largest != reply.budget:
            self._warn(
                "the workers name different budgets, from %d to %d connections; the smallest counts",
                reply.budget,
                reply.largest,
            )
        if reply.workers * minimum > reply.budget:
            self._warn(
                "%d workers need at least %d connections each, more than the budget of %d: some get none",
                reply.workers,
                minimum,
                reply.budget,
            )

    def compare(self, sessions: int, budget: int) -> None:
        """Warns if the server has more connections of the pool's role than the budget allows."""
        if sessions > budget:
            self._warn(
                "the server has %d connections of this role, more than the budget of %d: not all are the "
                "fleet's (guardrails fleet STORE --database-url URL says whose)",
                sessions,
                budget,
            )

    def _warn(self, words: str, *values: int) -> None:
        now = time.monotonic()
        if now >= self._next.get(words, 0.0):
            self._next[words] = now + _INTERVAL
            log.warning("fleet budget %r: " + words, self._budget, *values)
