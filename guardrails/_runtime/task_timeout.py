"""A scope whose asyncio task is cancelled at its deadline. Depends on timers; must not import guards."""

from __future__ import annotations

import asyncio
import pathlib
import sysconfig
import time
from collections.abc import Set as AbstractSet
from typing import Any

from guardrails._runtime.loop_timers import LoopTimers, Timer, timers_of
from guardrails._runtime.scope import Client, Scope, current

__all__ = ["TaskTimeout", "cancel_at", "lines_of"]

_current_task, _get_running_loop, _monotonic = asyncio.current_task, asyncio.get_running_loop, time.monotonic


class TaskTimeout(Scope, Timer):
    """A scope that is also its timer.

    Attributes:
        armed: True while the timer is set. The next three have a value only then.
        fired: True if the deadline came before the end of the work.
        timers: The loop's timers.
        given: Seconds from arming to the deadline, if that is an enclosing scope's.
    """

    __slots__ = ("_abandoned", "_cancelled_before", "_task", "armed", "due", "fired", "given", "timers")

    armed: bool
    fired: bool
    given: float
    timers: LoopTimers
    _cancelled_before: int
    _task: asyncio.Task[Any]

    def arm(self) -> None:
        """Cancels the running task at the deadline. The scope must have one.

        Raises:
            RuntimeError: No task is running.
        """
        try:
            loop = _get_running_loop()
            task = _current_task(loop)
            if task is None:
                raise RuntimeError("a guarded call must run inside an asyncio task")  # noqa: TRY301
            number = id(task)
            if self.timed_task == number:
                return  # an enclosing call's timer cancels this task at the same time
            at = self.at or 0.0
            if self.owner is not self.guard:
                self.given = max(0.0, at - self.clock())
            latest, timers = LoopTimers.latest
            if timers is None or latest is not loop:
                timers = timers_of(loop)
            if not timers.monotonic or self.clock is not _monotonic:
                at = loop.time() + max(0.0, at - self.clock())
            self.timers = timers
            self._task = task
            self._cancelled_before = task.cancelling()
            self.due = at
            self.fired = False
            timers.armed[self] = None
            self.armed = True
            self.timed_task = number
            if at < timers.planned:
                timers.plan(loop, at)
        except BaseException:
            self.on_arm_failed()
            raise

    def on_arm_failed(self) -> None:
        """Is called when the timer could not be set."""

    def fire(self) -> float | None:
        """See Timer."""
        self.fired = True
        self._task.cancel()
        return None

    def is_for(self, clients: AbstractSet[Client]) -> bool:
        """See Timer."""
        return self.request is not None and self.request.client in clients

    def note_client_left(self) -> None:
        """See Timer."""
        self._abandoned = True

    @property
    def abandoned(self) -> bool:
        """True if the timer has fired because the client of the request has left."""
        return getattr(self, "_abandoned", False)  # not set before, which would cost each call a store

    def disarm(self, error: BaseException | None) -> bool:
        """Disarms the timer. Returns True if it has cancelled the task, and takes that cancellation back.

        It returns False if the task was cancelled from outside as well, or ended with another exception. A
        task that has suppressed the cancellation is late all the same.
        """
        if not self.fired:
            self.timers.armed.pop(self, None)
            self.armed = False
            return False
        ours = self._task.uncancel() <= self._cancelled_before
        return ours and (error is None or isinstance(error, asyncio.CancelledError))


def cancel_at(at: float, *, with_client: bool = False) -> TaskTimeout:
    """Cancels the running task at a time by `time.monotonic`. The caller must ``disarm`` the result.

    Args:
        at: The time.
        with_client: True to cancel the task as soon as the client of the request leaves, too, where the
            middleware says so.
    """
    timeout = TaskTimeout()
    timeout.begin(at, None, time.monotonic, None)
    if with_client and (scope := current()) is not None:
        timeout.request = scope.request
    timeout.arm()
    return timeout


_MOST_LINES = 3


def lines_of(task: asyncio.Task[Any]) -> tuple[str, ...]:
    """The application's lines at which a task waits, innermost first, without those of libraries."""
    found: list[str] = []
    step: Any = task.get_coro()
    while step is not None:
        frame = getattr(step, "cr_frame", None) or getattr(step, "gi_frame", None)
        if frame is not None and not _is_library(frame.f_code.co_filename):
            path = "/".join(pathlib.PurePath(frame.f_code.co_filename).parts[-2:])
            found.append(f"{path}:{frame.f_lineno} in {frame.f_code.co_name}")
        step = getattr(step, "cr_await", None) or getattr(step, "gi_yieldfrom", None)
    return tuple(reversed(found))[:_MOST_LINES]


_OWN = str(pathlib.PurePath(__file__).parents[1])
_LIBRARIES = tuple({_OWN, *(sysconfig.get_path(each) for each in ("stdlib", "purelib", "platlib"))})


def _is_library(file: str) -> bool:
    return file.startswith((*_LIBRARIES, "<"))
