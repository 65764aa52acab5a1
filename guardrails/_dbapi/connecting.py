"""Opening connections within a time, and only so many at once.

No driver can be told to give up a connect without leaving something with the server: a frozen server has
taken the connection in, and works on each of them when it thaws. So a connect that its caller has given up
goes on, and the next caller who would open the same waits for it instead of opening another.

Must not know any driver; must not import SQLAlchemy.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from guardrails._runtime.fork import renew_after_fork

__all__ = ["InThread", "Opening", "Openings", "StoppedError", "lasting"]

_LASTING = 30.0
"""Seconds after which an opening ends by itself, unless a caller waits for longer."""

_FRESH = 5.0
"""Seconds for which a new caller waits for an opening that was given up. After that another is begun while
there is room: the first may have gone to a server that is no longer there."""

_SPARE = 2
"""Openings beyond the slots, for those that are begun after `_FRESH`."""

_LOOK = 0.05
"""Seconds between two looks for room, where every opening is for other parameters."""


class StoppedError(Exception):
    """Work was stopped at its deadline; the cause is what the driver said to it."""


def lasting(seconds: float) -> float:
    """Seconds after which an opening ends by itself when its caller waits for ``seconds``."""
    return max(seconds + 1.0, _LASTING)


class Opening(ABC):
    """One connection that is being opened.

    Args:
        call: Opens it.
        key: What it is opened with; a caller with another key must not get it.
        seconds: How long its caller waits.

    Attributes:
        since: The moment at which it was begun.
        awaited: Whether a caller waits for it.
        done: Whether it has ended.
        connection: What came of it.
        error: What was raised instead.
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
        """The time, on the clock that bounds `wait`."""
        return time.monotonic()

    @abstractmethod
    def start(self, ended: Callable[[Self], None]) -> None:
        """Begins. ``ended`` is called when it is over."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Waits for the end, for some seconds at most."""

    @abstractmethod
    def rest(self, seconds: float) -> None:
        """Lets time pass for the caller."""

    @abstractmethod
    def discard(self) -> None:
        """Closes a connection that came too late."""


class InThread(Opening):
    """Opens a connection in a thread of its own; see `Opening` for the arguments."""

    def __init__(self, call: Callable[[], Any], key: object, seconds: float) -> None:
        super().__init__(call, key, seconds)
        self._over = threading.Event()

    def start(self, ended: Callable[[Self], None]) -> None:
        """See Opening. The driver's own time limit ends it."""
        threading.Thread(target=self._run, args=(ended,), daemon=True, name="guardrails-connect").start()

    def _run(self, ended: Callable[[Self], None]) -> None:
        try:
            self.connection = self.call()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self.error = error
        finally:
            ended(self)
            self._over.set()

    def wait(self, seconds: float) -> None:
        """See Opening."""
        self._over.wait(max(0.0, seconds))

    def rest(self, seconds: float) -> None:
        """See Opening."""
        time.sleep(seconds)

    def discard(self) -> None:
        """See Opening."""
        with suppress(Exception):
            self.connection.close()


class Openings:
    """The connections that are being opened for one engine, awaited or given up.

    Args:
        slots: Gives the guard's number of slots; there are at most two openings more.
    """

    def __init__(self, slots: Callable[[], int]) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        self._pending: list[Opening] = []
        renew_after_fork(self)

    def pause(self, seconds: float) -> bool:
        """See Survivor."""
        return self._lock.acquire(timeout=seconds)

    def unpause(self) -> None:
        """See Survivor."""
        self._lock.release()

    def start_afresh(self) -> None:
        """See Survivor: the parent's threads do not exist here."""
        self._lock = threading.Lock()
        self._pending = []

    def open(self, wanted: Opening) -> Any:
        """Opens a connection, or takes over the opening of one that was given up.

        Args:
            wanted: What is begun where there is none to take over.

        Raises:
            StoppedError: There is none yet. One that comes later is closed, unless the next caller gets it.
        """
        until = wanted.since + wanted.seconds
        while True:
            opening = self._take(wanted)
            if opening is not None:
                if opening is wanted:
                    self._begin(wanted)
                self._wait(opening, until)
                if opening.error is None:
                    return opening.connection
                if opening is wanted:
                    raise opening.error
                # An older one has failed, perhaps for a reason that is gone: this caller tries for itself.
            left = until - wanted.now()
            if left <= 0:
                raise StoppedError from (None if opening is None else opening.error)
            if opening is None:
                wanted.rest(min(left, _LOOK))

    def _take(self, wanted: Opening) -> Opening | None:
        """The opening that a caller waits for: its own, or one that was given up; None without room."""
        with self._lock:
            room = len(self._pending) < self._slots() + _SPARE
            given_up = [each for each in self._pending if not each.awaited and each.key == wanted.key]
            # The latest: it is the likeliest to have gone where the server is now.
            if given_up and not (room and wanted.now() - given_up[-1].since >= _FRESH):
                given_up[-1].awaited = True
                return given_up[-1]
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

    def _wait(self, opening: Opening, until: float) -> None:
        try:
            opening.wait(until - opening.now())
        except BaseException:
            if not self._give_up(opening) and opening.error is None:
                opening.discard()
            raise
        if self._give_up(opening):
            raise StoppedError

    def _give_up(self, opening: Opening) -> bool:
        """Leaves an opening to whoever comes next; False if it has ended."""
        with self._lock:
            opening.awaited = False
            return not opening.done

    def _ended(self, opening: Opening) -> None:
        with self._lock:
            opening.done = True
            if opening in self._pending:  # else this is a child process
                self._pending.remove(opening)
            late = not opening.awaited
        if late and opening.error is None:
            opening.discard()
