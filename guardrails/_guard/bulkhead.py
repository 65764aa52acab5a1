"""`Bulkhead`: a guard without circuit and timeout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Never

from guardrails._guard.guard import Guard
from guardrails._util.checks import refuse_unknown
from guardrails.events import Listener

__all__ = ["Bulkhead"]


class Bulkhead(Guard):
    """Limits the number of concurrent calls. It has no circuit and no timeout.

    ::

        reports = Bulkhead("reports", 3)

        with reports.call():            # or: async with; run, run_async, @guarded(reports)
            ...

    Args:
        name: A label for errors, events and metrics.
        max_concurrent_calls: Slots.
        max_wait_duration: Longest time in seconds that a call waits for a slot; 0 refuses at once.
        max_waiting: Maximum number of waiting calls; None means ``max_concurrent_calls``.
        listeners: Called with events; see `guardrails.events`.
        clock: Returns the time in seconds; must be monotonic.

    Raises:
        ConfigurationError: One or more arguments are wrong; the message names each of them.
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
