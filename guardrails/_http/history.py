"""The last two minutes of guards, one row a second. Must not import a framework.

The housekeeper's thread keeps them from the first request of a page on. So a page that is opened later
shows what was before.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from guardrails._guard.guard import Guard, attachment_of, snapshot_of
from guardrails._guard.pool_snapshot import Distribution, PoolSnapshot
from guardrails._guard.snapshot import GuardSnapshot
from guardrails._runtime.fork import ForkedLock, in_child
from guardrails._runtime.housekeeper import run_later

__all__ = ["COLUMNS", "History"]

_STEP = 1.0
"""Seconds between two rows."""

_ROWS = 120

_MOST = 50
"""Guards whose history is kept, the first ones: a row of each is kept for each second."""

_NO_TIME = Distribution()

COLUMNS = (
    "seconds_ago",
    "state",
    "in_use",
    "waiting",
    "admitted",
    "refused",
    "failed",
    "slow",
    "wait_p50",
    "wait_p99",
    "hold_p50",
    "hold_p99",
    "would_reject",
)
"""The columns of a row. ``admitted`` to ``slow`` are the numbers of that second; the next four are times of
the checkouts in it, and None where there was none. ``would_reject`` counts what shadow let in."""

_process = [0]
"""Counts the forks, so that a history starts its task again in a child process."""


@in_child
def _note_fork() -> None:
    _process[0] += 1


class History:
    """The last two minutes of some guards.

    Args:
        guards: The guards.
    """

    def __init__(self, guards: Sequence[Guard]) -> None:
        self._guards = guards[:_MOST]
        self._rows: dict[Guard, deque[tuple[Any, ...]]] = {
            guard: deque(maxlen=_ROWS) for guard in self._guards
        }
        self._before: dict[Guard, tuple[GuardSnapshot, PoolSnapshot | None]] = {}
        self._lock = ForkedLock()
        self._started_in: int | None = None

    def start(self) -> None:
        """Keeps the rows from now on, in this process."""
        if self._started_in == _process[0] or not self._guards:
            return
        self._started_in = _process[0]
        reference = weakref.ref(self)

        def step() -> float | None:
            history = reference()
            return None if history is None else history.step()

        run_later(step, 0.0)

    def step(self) -> float:
        """Adds a row for each guard. Returns the seconds until the next one."""
        with self._lock:
            now = time.monotonic()
            for guard in self._guards:
                attachment = attachment_of(guard)
                seen = snapshot_of(guard), None if attachment is None else attachment.figures()
                before = self._before.get(guard)
                self._before[guard] = seen
                if before is not None:
                    self._rows[guard].append((now, *_row(*before, *seen)))
        return _STEP

    def fields(self) -> dict[str, object]:
        """Returns the rows of each guard, the oldest first, for a page in JSON."""
        now = time.monotonic()
        return {
            "columns": COLUMNS,
            "guards": [
                {"name": guard.name, "rows": [[round(now - at, 1), *row] for at, *row in list(rows)]}
                for guard, rows in self._rows.items()
            ],
        }


def _row(
    before: GuardSnapshot, pool_before: PoolSnapshot | None, seen: GuardSnapshot, pool: PoolSnapshot | None
) -> tuple[Any, ...]:
    wait = hold = _NO_TIME
    if pool is not None and pool_before is not None:
        wait, hold = pool.wait - pool_before.wait, pool.hold - pool_before.hold
    return (
        seen.state,
        seen.in_use,
        seen.waiting if pool is None else pool.waiting,
        seen.admitted - before.admitted,
        sum(seen.rejected.values()) - sum(before.rejected.values()),
        seen.failed - before.failed,
        seen.slow - before.slow,
        wait.quantile(0.5),
        wait.quantile(0.99),
        hold.quantile(0.5),
        hold.quantile(0.99),
        sum(seen.would_reject.values()) - sum(before.would_reject.values()),
    )
