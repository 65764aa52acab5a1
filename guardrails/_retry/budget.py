"""Limits retries to a share of the calls. Depends on windows; must not import the retry loop."""

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
"""Seconds for which a call or a retry counts: the default time to live of Finagle's budget."""

_ROUNDING = 1e-9
"""Absorbs rounding: with a ratio of 0.1, 30 calls must allow 3 retries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudgetSnapshot:
    """The figures of one budget at one moment.

    Attributes:
        calls: First attempts in the last ten seconds.
        retries: Further attempts in the last ten seconds.
        available: Retries that may start now.
        refused: Retries refused since the budget was made.
    """

    calls: int
    retries: int
    available: int
    refused: int


class RetryBudget:
    """Limits the retries of a service to a share of its calls.

    ::

        budget = RetryBudget()          # one for each dependency, shared by all its call sites

        @guarded(db, retry=retrying(budget=budget))
        async def load(user_id: int) -> User: ...

    Without a budget, three attempts a call triple the load of a dependency that starts to fail; three layers
    of them multiply it by 27. Each call deposits ``ratio`` of a retry, each retry withdraws one, and both
    expire after ten seconds, counted in slices of one second.

    Source: the token bucket of Finagle's ``RetryBudget`` (github.com/twitter/finagle, ``RetryBudget.scala``).

    Args:
        ratio: Retries allowed for each call, in [0, 1].
        minimum_per_second: Retries a second that are allowed in any case, so that a service with few calls
            can retry.
        clock: Returns a monotonic time in seconds.

    Raises:
        ConfigurationError: One or more arguments are wrong; the message names each of them.
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
        """Counts a first attempt. `retrying` does this; call it only in a retry loop of your own."""
        now = self._clock()
        with self._lock:
            self._forget(now)
            self._calls.add(0)

    def try_withdraw(self) -> bool:
        """Counts a retry and returns True; returns False if the budget has none left."""
        now = self._clock()
        with self._lock:
            self._forget(now)
            if self._available() < 1:
                self._refused += 1
                return False
            self._retries.add(0)
            return True

    def snapshot(self) -> RetryBudgetSnapshot:
        """Returns the figures of this moment."""
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
        # Negative if the calls that deposited a retry have expired and the retry has not.
        return int(self._ratio * self._calls.calls + self._free + _ROUNDING) - self._retries.calls

    def __repr__(self) -> str:
        now = self.snapshot()
        return f"<RetryBudget {now.retries} retries of {now.calls} calls, {now.available} available>"
