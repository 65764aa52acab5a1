"""`Bulkhead`: a guard that only counts its slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Never

from guardrails._guard.guard import Guard
from guardrails._util.checks import refuse_unknown
from guardrails.events import Listener

__all__ = ["Bulkhead"]


class Bulkhead(Guard):
    """At most so many calls at once: no circuit, no timeout.

    ::

        reports = Bulkhead("reports", 3)

        with reports.call():            # or: async with; run, run_async, @guarded(reports)
            ...

    Args:
        name: A label for errors, events and metrics.
        max_concurrent_calls: Slots.
        max_wait_duration: Seconds a call may wait for a slot; 0 refuses at once.
        max_waiting: How many calls may wait at once; None means ``max_concurrent_calls``.
        listeners: Called with events; see `guardrails.events`.
        clock: Where the time comes from; a monotonic reading in seconds.

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """

    __slots__ = ()

    def __init__(
        self,
        name: str,
        max_concurrent_calls: int,
        max_wait_duration: float = 0.0,
        max_waiting: int | None = None,
        *,
        listeners: Iterable[Listener] = (),
        clock: Callable[[], float] = time.monotonic,
        **misspelt: Never,
    ) -> None:
        refuse_unknown("Bulkhead", misspelt, Bulkhead.__init__)
        super().__init__(
            name,
            max_concurrent_calls=max_concurrent_calls,
            max_wait_duration=max_wait_duration,
            max_waiting=max_waiting,
            timeout=None,
            breaker=None,
            listeners=listeners,
            clock=clock,
        )
