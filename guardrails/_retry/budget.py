"""How many retries a service may afford: a share of its calls. Knows no calls, only their number."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Never

from guardrails._core.window import TimeWindow
from guardrails._runtime.fork import ForkedLock
from guardrails._util.checks import Faults, refuse_unknown

__all__ = ["RetryBudget", "RetryBudgetSnapshot"]

_WINDOW = 10.0
"""Seconds a call counts for: Finagle's default time to live. Long enough to outlast a blip, short
enough that yesterday's quiet pays for no storm."""

_ROUNDING = 1e-9
"""A share of 0.1 must allow the third retry at 30 calls, although 0.1 * 30 is not exactly 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudgetSnapshot:
    """The figures of one budget, all of the same moment.

    Attributes:
        calls: First attempts in the last ten seconds.
        retries: Further attempts in the last ten seconds.
        available: Retries that may begin now.
        refused: Retries that were not allowed since the budget was made.
    """

    calls: int
    retries: int
    available: int
    refused: int


class RetryBudget:
    """Retries may add at most this share to the calls.

    ::

        budget = RetryBudget()          # one for each dependency, shared by all its call sites

        @guarded(db, retry=retrying(budget=budget))
        async def load(user_id: int) -> User: ...

    Without a budget, a dependency that begins to fail gets three times the load just then, and with
    three layers of three attempts 27 times. This is the leaky token bucket of Finagle's ``RetryBudget``
    (github.com/twitter/finagle, ``RetryBudget.scala``): each call deposits ``ratio`` of a retry, each
    retry withdraws one, and both are forgotten after ten seconds. Time is kept in slices of one second.

    Args:
        ratio: Share of the calls that may be retries: a fraction in [0, 1].
        minimum_per_second: Retries a second that are free, so that a quiet service can retry at all.
        clock: Where the time comes from; a monotonic reading in seconds.

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """

    def __init__(
        self,
        ratio: float = 0.1,
        minimum_per_second: float = 1.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        **misspelt: Never,
    ) -> None:
        refuse_unknown("RetryBudget", misspelt, RetryBudget.__init__)
        faults = Faults("RetryBudget")
        faults.number("ratio", ratio, 0, 1)
        faults.number("minimum_per_second", minimum_per_second, 0, 1_000_000)
        faults.callable("clock", clock, none=False)
        faults.raise_if_any()
        self._ratio = ratio
        self._free = minimum_per_second * _WINDOW
        self._clock = clock
        self._lock = ForkedLock()
        self._calls = TimeWindow(_WINDOW)
        self._retries = TimeWindow(_WINDOW)
        self._refused = 0

    def deposit(self) -> None:
        """Notes a first attempt. `retrying` does so; only a retry loop of your own calls this."""
        now = self._clock()
        with self._lock:
            self._forget(now)
            self._calls.add(0)

    def try_withdraw(self) -> bool:
        """Whether one retry may begin; if so, it counts as made."""
        now = self._clock()
        with self._lock:
            self._forget(now)
            if self._available() < 1:
                self._refused += 1
                return False
            self._retries.add(0)
            return True

    def snapshot(self) -> RetryBudgetSnapshot:
        """The figures of this moment."""
        now = self._clock()
        with self._lock:
            self._forget(now)
            return RetryBudgetSnapshot(
                calls=self._calls.calls,
                retries=self._retries.calls,
                available=max(0, self._available()),
                refused=self._refused,
            )

    def _forget(self, now: float) -> None:
        self._calls.advance(now)
        self._retries.advance(now)

    def _available(self) -> int:
        # Negative when the calls that paid for a retry are forgotten before the retry is.
        return int(self._ratio * self._calls.calls + self._free + _ROUNDING) - self._retries.calls

    def __repr__(self) -> str:
        now = self.snapshot()
        return f"<RetryBudget {now.retries} retries of {now.calls} calls, {now.available} available>"
