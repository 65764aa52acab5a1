"""What a real guard needs around it in a simulation: a pool, and silence. Depends on the guard's log."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from logging import LogRecord
from typing import Any

from guardrails._guard.pool_snapshot import PoolSnapshot
from guardrails._runtime.guard_log import log

__all__ = ["SimulatedPool", "quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the lines that simulated guards write out of this process's log."""
    thread = threading.get_ident()

    def passes(record: LogRecord) -> bool:
        return record.thread != thread

    log.addFilter(passes)
    try:
        yield
    finally:
        log.removeFilter(passes)


class SimulatedPool:
    """What a guard is attached to, so that it has the rules of a pool's guard."""

    upkeep = None

    def __init__(self, most: int) -> None:
        self.most: int | None = most

    def detach(self) -> None:
        """Does nothing: the guard ends with the simulation."""

    def figures(self) -> PoolSnapshot:
        """Not needed here."""
        raise NotImplementedError

    def status(self) -> Any:
        """Not needed here."""
        raise NotImplementedError
