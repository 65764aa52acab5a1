"""Checks the demo's own figures: the lateness of its timers, and the other load of the machine.

Depends on psutil and the event loop; must not know scenarios or twins.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped] # it ships no types

from guardrails.demo.percentiles import percentile

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Check", "Meter"]

_EVERY = 0.02

LAG_BOUND = 0.05
"""Seconds by which the users may be late (p99): a fifth of a query of the demo."""

STEAL_BOUND = 0.05
"""The share of its time that the machine may lose to other guests of its host."""

OTHERS_BOUND = 0.2
"""The share of the machine that may go to processes that are not the demo's."""


@dataclass(frozen=True, slots=True)
class Check:
    """The readings of a meter.

    Attributes:
        lag: Seconds by which the demo's own timers were late, p99.
        worst_lag: The same at worst.
        busy: Share of the machine in use.
        steal: Share that its host gave to other guests; 0 where the system does not report it.
        others: Share of processes that are not the demo's; None with a database of the user's own.
    """

    lag: float
    worst_lag: float
    busy: float
    steal: float
    others: float | None

    @property
    def disturbances(self) -> list[str]:
        """The reasons why the figures are not valid; empty if they are valid."""
        found = []
        if self.lag > LAG_BOUND:
            found.append(
                f"users were sent {self.lag * 1000:.0f} ms late (p99; bound {LAG_BOUND * 1000:.0f} ms)"
            )
        if self.steal > STEAL_BOUND:
            found.append(f"the host took {self.steal:.0%} of the machine (bound {STEAL_BOUND:.0%})")
        if self.others is not None and self.others > OTHERS_BOUND:
            found.append(f"other programs used {self.others:.0%} of the machine (bound {OTHERS_BOUND:.0%})")
        return found


@dataclass(slots=True)
class Meter:
    """Measures the demo and its machine during the load.

    Args:
        owns_database: True if the database's processes are the demo's.
        clock: The time in seconds.
    """

    owns_database: bool
    clock: Callable[[], float] = time.monotonic
    _lags: list[float] = field(default_factory=list)
    _began: _Reading | None = None

    async def watch(self) -> None:
        """Measures the lateness of a timer again and again, until it is cancelled."""
        self._began = _read()
        while True:
            due = self.clock() + _EVERY
            await asyncio.sleep(_EVERY)
            self._lags.append(max(0.0, self.clock() - due))

    def check(self) -> Check | None:
        """Returns the readings since `watch` began; None if it never did."""
        if self._began is None or not self._lags:
            return None
        return _compare(self._began, _read(), self._lags, owns_database=self.owns_database)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Processor seconds since the machine started, and those of the demo's processes."""

    total: float
    idle: float
    steal: float
    own: float


def _compare(before: _Reading, after: _Reading, lags: list[float], *, owns_database: bool) -> Check:
    total = max(after.total - before.total, 1e-9)
    steal = (after.steal - before.steal) / total
    busy = max(0.0, 1.0 - (after.idle - before.idle) / total - steal)
    own = (after.own - before.own) / total
    others = max(0.0, busy - own) if owns_database else None
    return Check(percentile(lags, 0.99) or 0.0, max(lags), busy, steal, others)


def _read() -> _Reading:
    machine = psutil.cpu_times()
    # The time of guests is included in that of users.
    counted = machine._asdict() | {"guest": 0.0, "guest_nice": 0.0}
    idle = counted["idle"] + counted.get("iowait", 0.0)
    this = psutil.Process()
    own = 0.0
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error):  # a process of the database that has just ended; its parent has its time
            own += sum(process.cpu_times()[:4])  # its own and those of its children that have ended
    return _Reading(sum(counted.values()), idle, counted.get("steal", 0.0), own)
