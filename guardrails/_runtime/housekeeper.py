"""Runs small periodic tasks in one daemon thread. Depends on forks; must not import guards or pools."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from guardrails._runtime.fork import check_process, in_child
from guardrails._runtime.threads import daemon

__all__ = ["run_later"]

_log = logging.getLogger("guardrails")

Task = Callable[[], float | None]
"""Returns the seconds until its next run; None for none."""


class _Housekeeper:
    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Starts without tasks and thread: a child process does not inherit the thread."""
        # SimpleQueue.put() is reentrant: a finaliser may call it while its own thread is in it.
        self._queue: SimpleQueue[tuple[float, Task]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # a finaliser may ask while the thread is started

    def run_later(self, task: Task, seconds: float) -> None:
        """Runs a task after so many seconds, in the housekeeper's thread."""
        check_process()
        self._queue.put((time.monotonic() + seconds, task))
        if self._thread is None:
            thread = daemon("guardrails-housekeeper", self._run, self._queue)
            with self._lock:
                if self._thread is None:
                    self._thread = thread
                    thread.start()

    def _run(self, queue: SimpleQueue[tuple[float, Task]]) -> None:
        due: dict[Task, float] = {}
        while True:
            wait = max(0.0, min(due.values()) - time.monotonic()) if due else None
            try:
                at, task = queue.get(timeout=wait)
                due[task] = min(at, due.get(task, at))
            except Empty:
                pass
            now = time.monotonic()
            for task in [task for task, at in due.items() if at <= now]:
                interval = _run_task(task)
                if interval is None:
                    del due[task]
                else:
                    due[task] = time.monotonic() + interval
            task = None  # type: ignore[assignment] # otherwise this frame would keep its object alive


def _run_task(task: Task) -> float | None:
    try:
        return task()
    except Exception:  # noqa: BLE001 - logged; the next task must run all the same
        with suppress(Exception):  # of the application's filter or handler
            _log.exception("a periodic task of a guard raised")
        return None


_housekeeper = _Housekeeper()

in_child(_housekeeper.forget)

run_later = _housekeeper.run_later
