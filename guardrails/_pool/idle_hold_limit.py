"""``max_idle_hold``: finds connections that are checked out and idle for longer, and takes them back.

Depends on holds and the housekeeper's thread; must not import a pool or a driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from guardrails._guard.guard import Guard
from guardrails._pool.idle_hold import IdleHold
from guardrails._pool.lock_waits import UNKNOWN_LINE
from guardrails._runtime.fork import renew_after_fork
from guardrails._runtime.guard_log import log
from guardrails._runtime.housekeeper import run_later
from guardrails._runtime.pauses import pause_detector
from guardrails._util.names import fields_of

__all__ = ["IdleHoldLimit"]

T = TypeVar("T")

_LOG_INTERVAL = 60.0
"""Seconds between two log entries about connections that the same line of code took."""

_MAX_LINES = 64
"""Lines of code whose last log entry is remembered."""


class IdleHoldLimit(Generic[T]):
    """Limits the time for which nothing runs on a connection of one pool that is checked out.

    A check is planned for the earliest time at which a connection can be due, and only while one is out.

    Args:
        guard: The pool's guard.
        seconds: The limit.
        out: Returns the connections that are checked out, each with its `IdleHold`.
        take_back: Takes a connection back, if it still looks idle then.
        origin: Returns the application's lines that took a connection, and the request.

    Attributes:
        seconds: See above.
        watching: True while a check is planned.
    """

    def __init__(
        self,
        guard: Guard,
        seconds: float,
        out: Callable[[], Iterable[tuple[IdleHold, T]]],
        take_back: Callable[[T], None],
        origin: Callable[[T], tuple[tuple[str, ...], Any]],
    ) -> None:
        self.seconds = seconds
        self.watching = False
        self._guard = guard
        self._gate = guard.call_settings.gates[0]
        self._out = out
        self._take_back = take_back
        self._origin = origin
        self._forgiven = time.monotonic()
        self._logged: dict[str, tuple[float, int]] = {}
        renew_after_fork(self)

    def now(self) -> float:
        """The time on the guard's clock."""
        return self._gate.clock()

    def watch(self) -> None:
        """Plans the first check after a checkout."""
        self.watching = True
        pause_detector.wake(time.monotonic() + self.seconds + 1)
        run_later(self._check, self.seconds)

    def log(self, where: tuple[str, ...], route: str | None, seconds: float) -> None:
        """Logs a connection that was taken back; for each line of code at most once a minute."""
        line, now = where[0] if where else UNKNOWN_LINE, time.monotonic()
        last, unlogged = self._logged.get(line, (now - _LOG_INTERVAL, 0))
        if now - last < _LOG_INTERVAL:
            self._logged[line] = last, unlogged + 1
            return
        if len(self._logged) >= _MAX_LINES:
            self._logged.clear()
        self._logged[line] = now, 0
        log.warning(
            "guard %r took a connection back%s: nothing had run on it for %.1f s; "
            "it was checked out at %s%s; "
            "end the transaction or close the session before other work, or use holding()",
            self._guard.name,
            f" (and {unlogged} more from there since the last line)" if unlogged else "",
            seconds,
            " < ".join(where) or line,
            f", for {route}" if route else "",
            extra=fields_of(self._guard.name),
        )

    def _check(self) -> float | None:
        """Has due connections taken back. Returns the seconds until the next is due; None plans nothing."""
        self.watching = False  # first: a checkout from here on is seen below, or plans a check
        out, now = list(self._out()), self.now()
        self._forgive_pause([hold for hold, _ in out], now)
        waits = []
        for hold, connection in out:
            left = hold.due_in(now, self.seconds)
            if left is not None and left <= 0:
                self._overdue(hold, connection)
            waits.append(left if left is not None and left > 0 else self.seconds)
        if not waits:
            return None
        self.watching = True
        wait = min([*waits, self.seconds])  # a connection that is taken meanwhile is not due before
        pause_detector.wake(time.monotonic() + wait + 1)
        return wait

    def _overdue(self, hold: IdleHold, connection: T) -> None:
        """Takes a connection back, or counts it once where the guard only watches."""
        if self._guard.mode == "enforce":
            self._take_back(connection)
        elif self._guard.mode == "shadow" and not hold.noted:
            hold.noted = True
            where, request = self._origin(connection)
            self._gate.step(self._gate.core.count_would_stop)
            self._gate.note_would_stop(hold, self.seconds, where, request)
            self._gate.report.sums.ended(hold)

    def _forgive_pause(self, holds: list[IdleHold], now: float) -> None:
        """Counts no time in which the whole process stood still: its holders could not work either."""
        moment = time.monotonic()
        pause = pause_detector.latest(moment)
        if pause.until > self._forgiven:
            self._forgiven = pause.until
            for hold in holds:
                hold.forgive(now - (moment - pause.until))

    # --- forks ---------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:  # noqa: ARG002
        """See ForkAware."""
        return True

    def unpause(self) -> None:
        """See ForkAware."""

    def reset_in_child(self) -> None:
        """Forgets the planned check in a child process, which has no connections of its own yet."""
        self.watching = False
