"""Small asynchronous errands nobody waits for. Knows no driver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Background"]


class Background:
    """Runs coroutines on the loop of whoever hands them in, and keeps them from the collector.

    Args:
        failed: Called with the error of one that fails.
    """

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._running: set[asyncio.Task[None]] = set()

    def run(self, errand: Coroutine[Any, Any, None], within: float) -> None:
        """Starts one, which has ``within`` seconds."""
        task = asyncio.get_running_loop().create_task(self._run(errand, within))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, errand: Coroutine[Any, Any, None], within: float) -> None:
        try:
            async with asyncio.timeout(within):  # wait_for() would begin it a turn of the loop later
                await errand
        except Exception as error:  # noqa: BLE001 - handed on
            self._failed(error)
