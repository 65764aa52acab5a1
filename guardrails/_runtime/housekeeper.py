"""Somebody who looks in from time to time: one daemon thread for all. Knows moments, not what is there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from guardrails._runtime.fork import check_process, in_child

__all__ = ["look_in"]

_log = logging.getLogger("guardrails")

Look = Callable[[], float | None]
"""Looks at something; the seconds until it wants to look again, or None."""


class _Housekeeper:
    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Starts from nothing, as a child process must, which has not the thread."""
        # Its put() may be interrupted by itself, as by a finaliser that the collector runs just there.
        self._asked: SimpleQueue[tuple[float, Look]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def look_in(self, look: Look, seconds: float) -> None:
        """Has something looked at in so many seconds, in a thread of its own."""
        check_process()
        self._asked.put((time.monotonic() + seconds, look))
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._walk, args=(self._asked,), daemon=True, name="guardrails-patrol"
            )
            self._thread.start()

    def _walk(self, asked: SimpleQueue[tuple[float, Look]]) -> None:
        due: dict[Look, float] = {}
        while True:
            wait = max(0.0, min(due.values()) - time.monotonic()) if due else None
            try:
                at, look = asked.get(timeout=wait)
                due[look] = min(at, due.get(look, at))
            except Empty:
                pass
            now = time.monotonic()
            for look in [look for look, at in due.items() if at <= now]:
                again = _look(look)
                if again is None:
                    del due[look]
                else:
                    due[look] = time.monotonic() + again
            look = None  # type: ignore[assignment] # or it would be kept alive until the next one is asked for


def _look(look: Look) -> float | None:
    try:
        return look()
    except Exception:  # noqa: BLE001 - logged; the next one must be looked at all the same
        _log.exception("something of a guard could not be looked at")
        return None


_housekeeper = _Housekeeper()

in_child(_housekeeper.forget)

look_in = _housekeeper.look_in
