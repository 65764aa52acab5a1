"""Small asynchronous errands nobody waits for. Knows no driver."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

__all__ = ["Background"]


class Background:
    """Runs coroutines on the loop of whoever hands them in, and keeps them from the collector."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def run(self, errand: Coroutine[Any, Any, None], within: float) -> None:
        """Starts one; it has ``within`` seconds, and what it raises is dropped."""
        task = asyncio.get_running_loop().create_task(_quietly(errand, within))
        self._running.add(task)
        task.add_done_callback(self._running.discard)


async def _quietly(errand: Coroutine[Any, Any, None], within: float) -> None:
    with suppress(Exception):
        async with asyncio.timeout(within):  # wait_for() would begin it a turn of the loop later
            await errand
