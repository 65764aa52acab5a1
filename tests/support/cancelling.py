"""Cancels a task at a chosen one of its await points."""

from __future__ import annotations

import asyncio
import functools
import types

__all__ = ["cancelled_at"]


@types.coroutine
def _cancelled_at(coroutine, point):
    points, step = 0, functools.partial(coroutine.send, None)
    while True:
        try:
            awaited = step()
        except StopIteration:
            return points
        except asyncio.CancelledError:
            return points
        points += 1
        if points == point:
            asyncio.current_task().cancel()
        try:
            sent = yield awaited
            step = functools.partial(coroutine.send, sent)
        except BaseException as thrown:
            step = functools.partial(coroutine.throw, thrown)


async def cancelled_at(coroutine, point):
    """Awaits a coroutine and cancels its task at one of its await points; returns how many it reached."""
    reached = await _cancelled_at(coroutine, point)
    asyncio.current_task().uncancel()
    return reached
