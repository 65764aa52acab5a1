"""Runs coroutines in background tasks. Depends on asyncio; must not import a driver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Background"]


class Background:
    """Runs coroutines on the caller's loop and keeps a reference to their tasks.

    Args:
        failed: Called with the error of a coroutine that fails.
    """

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._running: set[asyncio.Task[None]] = set()

    def run(self, coroutine: Coroutine[Any, Any, None], within: float) -> None:
        """Starts a coroutine that may take ``within`` seconds."""
        task = asyncio.get_running_loop().create_task(self._run(coroutine, within))
        self._running.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            coroutine.close()  # nothing has awaited it if the task was cancelled before its first step

        task.add_done_callback(ended)

    async def _run(self, coroutine: Coroutine[Any, Any, None], within: float) -> None:
        try:
            async with asyncio.timeout(within):  # wait_for() would start it one iteration of the loop later
                await coroutine
        except Exception as error:  # noqa: BLE001 - passed to failed()
            self._failed(error)
