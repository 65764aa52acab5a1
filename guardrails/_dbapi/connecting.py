"""Opens connections within a time limit, with a maximum number of concurrent openings.

A connect that its caller has abandoned continues, and the next caller with the same arguments waits for it
instead of opening another. A cancelled connect would still cost the server work: a frozen server has
accepted the connection and handles each of them when it thaws. It is one coroutine: threads and greenlets,
where no step waits for an event loop, run it to its end.

Depends on threads only; must not import a driver or SQLAlchemy.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from guardrails._pool.idle_pool import run_to_end
from guardrails._runtime.fork import renew_after_fork
from guardrails._runtime.threads import daemon

__all__ = ["InThread", "Opening", "Openings", "StoppedError", "driver_time_limit"]

_MIN_TIME_LIMIT = 30.0
"""Seconds after which an opening ends on its own, unless a caller waits longer."""

_MAX_TAKEOVER_AGE = 5.0
"""Age in seconds up to which a new caller takes over an abandoned opening. After that a second opening starts
if there is room, because the server of the first may be gone."""

_EXTRA_OPENINGS = 2
"""Openings allowed beyond the number of slots, for those that start after `_MAX_TAKEOVER_AGE`."""

_POLL_INTERVAL = 0.05
"""Seconds between two checks for room, while every opening has other arguments."""


class StoppedError(Exception):
    """Work was stopped, at its deadline or for its client; the cause is the driver's error.

    Attributes:
        client_gone: True if the client of the request has left.
    """

    def __init__(self, *, client_gone: bool = False) -> None:
        super().__init__()
        self.client_gone = client_gone


def driver_time_limit(seconds: float) -> float:
    """Seconds after which an opening ends on its own when its caller waits for ``seconds``."""
    return max(seconds + 1.0, _MIN_TIME_LIMIT)


class Opening(ABC):
    """One connection that is being opened.

    Args:
        call: Opens the connection.
        key: The connection arguments; only a caller with an equal key may take it over.
        seconds: Seconds for which its caller waits.

    Attributes:
        since: Start time.
        awaited: True while a caller waits for it.
        done: True once it has ended.
        connection: The connection; None until it is open.
        error: The exception if it failed.
    """

    def __init__(self, call: Callable[[], Any], key: object, seconds: float) -> None:
        self.call = call
        self.key = key
        self.seconds = seconds
        self.since = self.now()
        self.awaited = True
        self.done = False
        self.connection: Any = None
        self.error: BaseException | None = None

    def now(self) -> float:
        """The current time, on the clock of `wait`."""
        return time.monotonic()

    @abstractmethod
    def start(self, ended: Callable[[Self], None]) -> None:
        """Starts the opening and calls ``ended`` when it is over."""

    @abstractmethod
    async def wait(self, seconds: float) -> None:
        """Waits for the end, at most ``seconds``."""

    @abstractmethod
    async def rest(self, seconds: float) -> None:
        """Suspends the caller for ``seconds``."""

    def cancel(self) -> None:  # noqa: B027 - a thread's cannot be
        """Ends the opening, where that can be done."""

    @abstractmethod
    def discard(self) -> None:
        """Closes a connection that was opened too late."""


class InThread(Opening):
    """Opens a connection in a thread of its own; see `Opening` for the arguments."""

    def __init__(self, call: Callable[[], Any], key: object, seconds: float) -> None:
        super().__init__(call, key, seconds)
        self._over = threading.Event()

    def start(self, ended: Callable[[Self], None]) -> None:
        """See Opening. The driver's own time limit ends it."""
        daemon("guardrails-connect", self._run, ended).start()

    def _run(self, ended: Callable[[Self], None]) -> None:
        try:
            self.connection = self.call()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self.error = error
        finally:
            ended(self)
            self._over.set()

    async def wait(self, seconds: float) -> None:
        """See Opening."""
        self._over.wait(max(0.0, seconds))

    async def rest(self, seconds: float) -> None:
        """See Opening."""
        time.sleep(seconds)  # noqa: ASYNC251 - no event loop runs it

    def discard(self) -> None:
        """See Opening."""
        with suppress(Exception):
            self.connection.close()


class Openings:
    """The openings of one engine that are under way, awaited or abandoned.

    Args:
        slots: Returns the guard's number of slots; at most two more openings run concurrently.
    """

    def __init__(self, slots: Callable[[], int]) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        self._pending: list[Opening] = []
        renew_after_fork(self)

    def pause(self, seconds: float) -> bool:
        """See ForkAware."""
        return self._lock.acquire(timeout=seconds)

    def unpause(self) -> None:
        """See ForkAware."""
        self._lock.release()

    def reset_in_child(self) -> None:
        """See ForkAware: a child process does not have the parent's threads."""
        self._lock = threading.Lock()
        self._pending = []

    def open(self, wanted: Opening) -> Any:
        """Opens a connection in this thread or greenlet; see `open_async`."""
        return run_to_end(self.open_async(wanted))

    async def open_async(self, wanted: Opening) -> Any:
        """Opens a connection, or takes over an abandoned opening.

        Args:
            wanted: Started if there is none to take over.

        Raises:
            StoppedError: Time is up. A connection that opens later goes to the next caller or is closed.
        """
        until = wanted.since + wanted.seconds
        while True:
            opening = self._take(wanted)
            if opening is not None:
                if opening is wanted:
                    self._begin(wanted)
                await self._wait(opening, until)
                if opening.error is None:
                    return opening.connection
                if opening is wanted:
                    raise opening.error
                # The older opening failed, perhaps for a reason that is gone: this caller opens its own.
            left = until - wanted.now()
            if left <= 0:
                raise StoppedError from (None if opening is None else opening.error)
            if opening is None:
                await wanted.rest(min(left, _POLL_INTERVAL))

    def drop(self) -> None:
        """Ends the abandoned openings that can be ended."""
        with self._lock:
            abandoned = [each for each in self._pending if not each.awaited]
        for each in abandoned:
            each.cancel()

    def _take(self, wanted: Opening) -> Opening | None:
        """The opening to wait for: the caller's own or an abandoned one; None if there is no room."""
        with self._lock:
            room = len(self._pending) < self._slots() + _EXTRA_OPENINGS
            abandoned = [each for each in self._pending if not each.awaited and each.key == wanted.key]
            # The latest is the most likely to have reached the present server.
            if abandoned and not (room and wanted.now() - abandoned[-1].since >= _MAX_TAKEOVER_AGE):
                abandoned[-1].awaited = True
                return abandoned[-1]
            if not room:
                return None
            wanted.since = wanted.now()
            self._pending.append(wanted)
            return wanted

    def _begin(self, opening: Opening) -> None:
        try:
            opening.start(self._ended)
        except BaseException:
            with self._lock:
                self._pending.remove(opening)
            raise

    async def _wait(self, opening: Opening, until: float) -> None:
        try:
            await opening.wait(until - opening.now())
        except BaseException:
            if not self._abandon(opening) and opening.error is None:
                opening.discard()
            raise
        if self._abandon(opening):
            raise StoppedError

    def _abandon(self, opening: Opening) -> bool:
        """Leaves an opening to the next caller; False if it has ended."""
        with self._lock:
            opening.awaited = False
            return not opening.done

    def _ended(self, opening: Opening) -> None:
        with self._lock:
            opening.done = True
            if opening in self._pending:  # not in a child process
                self._pending.remove(opening)
            late = not opening.awaited
        if late and opening.error is None:
            opening.discard()
