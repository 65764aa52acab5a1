"""For ``max_idle_hold``: the time for which nothing has run on a connection that is checked out.

A connection that is held idle for longer is taken back. One object, the *token*, excludes work on it and its
revocation from each other: the code that takes it out of ``IdleHold.idle`` owns the connection. Taking the
token and putting it back is one operation on a list, which is atomic with and without the interpreter lock.
So a statement takes no lock, unless it finds no token.

Depends on checkouts; must not import a pool or a driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, Self

from guardrails._runtime.fork import ForkedLock
from guardrails._runtime.holding import current_block, holding
from guardrails.errors import ConnectionRevokedError

__all__ = ["IdleHold", "PutBack"]

_lock = ForkedLock()
"""Held for a few instructions by a revocation, and by work that finds no token."""


class PutBack(Protocol):
    """Where the end of a piece of work is noted: the token's list, or the `IdleHold`."""

    def append(self, now: float, /) -> None:
        """Ends a piece of work at a time."""


class IdleHold:
    """One connection that is checked out: whether work runs on it, and since when none does.

    Until `hand_out` or `append` is called, the set-up of the connection counts as work.

    Attributes:
        idle: The token: the time at which the last work ended. Empty while work runs, and after the
            connection was taken back.
        exempt: True if the connection must not be taken back: work on it cannot be seen, or must not be lost.
        noted: True if its idle time was reported, by a guard that does not enforce.
    """

    __slots__ = ("_block", "_error", "_is_new", "_since", "_work_without_token", "exempt", "idle", "noted")

    def __init__(self, now: float) -> None:
        self.idle: list[float] = [now]
        self.exempt = self.noted = False
        self._work_without_token = 1
        self._is_new = True
        self._since = now
        self._block = current_block()
        self._error: Callable[[], ConnectionRevokedError] | None = None

    @property
    def revoked(self) -> bool:
        """True if the connection was taken back."""
        return self._error is not None

    def new_error(self) -> ConnectionRevokedError:
        """Makes the error of a connection that was taken back; see `revoked`."""
        assert self._error is not None  # noqa: S101 - by contract
        return self._error()

    def begin(self) -> PutBack:
        """Begins a piece of work whatever else runs on the connection.

        The hot path takes the token out of ``idle``, and calls this only if there is none.

        Returns:
            The object to which the end of the work is appended.

        Raises:
            ConnectionRevokedError: The connection was taken back.
        """
        with _lock:
            if self._error is not None:
                raise self._error()
            self._work_without_token += 1
        return self

    def append(self, now: float) -> None:
        """Ends a piece of work that `begin` began."""
        with _lock:
            self._work_without_token -= 1
            self._since = max(self._since, now)

    def hand_out(self, now: float) -> None:
        """Ends the set-up of a connection that is not shared; repeated calls do nothing."""
        if self._is_new:
            self._is_new = False
            self.append(now)

    def share(self) -> Self:
        """Begins the set-up of a connection for one more caller, who shares it with the others.

        Raises:
            ConnectionRevokedError: The connection was taken back.
        """
        self.begin()
        self._block = current_block()
        return self

    def set_exempt(self, *, on: bool) -> None:
        """Sets whether the connection is exempt.

        Raises:
            ConnectionRevokedError: It was taken back before.
        """
        with _lock:
            if self._error is not None:
                raise self._error()
            self.exempt = on

    def cover(self, block: holding) -> None:
        """Lets a block of `holding` count for this connection."""
        self._block = block

    def due_in(self, now: float, limit: float) -> float | None:
        """Seconds until it has been idle for too long; None while work runs, or if it is exempt."""
        try:
            since = self.idle[0]
        except IndexError:
            return None
        return None if self._work_without_token or self.exempt else self._left(since, now, limit)

    def idle_for(self, now: float) -> float:
        """Seconds since the end of the last work."""
        return now - max([self._since, *self.idle])

    def forgive(self, until: float) -> None:
        """Counts no idle time before ``until``, when this process did not run."""
        with _lock:
            self._since = max(self._since, until)

    def take_back(
        self, now: float, limit: float, error: Callable[[], ConnectionRevokedError], cut: Callable[[], bool]
    ) -> bool:
        """Takes the connection back if nothing runs on it and nothing has for too long.

        Args:
            now: The time.
            limit: Seconds for which it may be idle.
            error: Makes the error of later work.
            cut: Separates the holder from the connection without blocking; returns False if the holder no
                longer has it.
        """
        with _lock:
            try:
                since = self.idle.pop()
            except IndexError:
                return False
            late = not self._work_without_token and not self.exempt and self._left(since, now, limit) <= 0
            if late and cut():
                self._since = since
                self._error = error
                return True
            self.idle.append(since)
            return False

    def _left(self, since: float, now: float, limit: float) -> float:
        since, block = max(since, self._since), self._block
        while block is not None and block.ended is not None:
            since = max(since, now - (time.monotonic() - block.ended))
            block = block.outer
        return since + (limit if block is None else max(limit, block.seconds)) - now
