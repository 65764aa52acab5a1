"""Opens connections in asyncio tasks. Depends on asyncio; must not import a driver or SQLAlchemy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from guardrails._dbapi.connecting import Opening, driver_time_limit

__all__ = ["OnLoop"]


class OnLoop(Opening):
    """Opens a connection in a task of its own; see `Opening` for the arguments. ``call`` makes a coroutine.

    If its caller is cancelled or late, the task runs on for the next caller.
    """

    def __init__(self, call: Callable[[], Any], key: object, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(call, (self._loop, key), seconds)

    def now(self) -> float:
        """See Opening."""
        return self._loop.time()

    def start(self, ended: Callable[[Self], None]) -> None:
        """See Opening."""
        self._task = self._loop.create_task(self._run(), name="guardrails-connect")
        self._task.add_done_callback(lambda task: self._end(task, ended))

    async def _run(self) -> Any:
        async with asyncio.timeout(driver_time_limit(self.seconds)):
            return await self._open()

    async def _open(self) -> Any:
        return await self.call()

    def _end(self, task: asyncio.Task[Any], ended: Callable[[Self], None]) -> None:
        if task.cancelled():
            self.error = asyncio.CancelledError()  # the loop ends
        elif (error := task.exception()) is not None:
            self.error = error
        else:
            self.connection = task.result()
        ended(self)

    async def wait(self, seconds: float) -> None:
        """See Opening."""
        await asyncio.wait({self._task}, timeout=max(0.0, seconds))

    async def rest(self, seconds: float) -> None:
        """See Opening."""
        await asyncio.sleep(seconds)

    def cancel(self) -> None:
        """See Opening."""
        self._task.cancel()

    def discard(self) -> None:
        """See Opening."""
        with suppress(Exception):
            self.connection.terminate()
