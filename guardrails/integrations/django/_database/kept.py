"""Connections that Django's threads keep between requests. Other threads may close them to open their own.

Must not import a driver. A kept connection belongs to no thread until its own thread claims it again, so that
no thread closes one on which another works.
"""

from __future__ import annotations

import os
from typing import Any

from guardrails._pool.life import Age
from guardrails._runtime.fork import ForkedLock
from guardrails._util.weak_registry import WeakRegistry
from guardrails.integrations.django._database.connection_notes import own_age

__all__ = ["Keeping", "KeptConnections"]


class KeptConnections:
    """The kept connections behind one guard.

    Args:
        wrappers: Django's wrappers of connections, each of one thread.
    """

    def __init__(self, wrappers: WeakRegistry[Any]) -> None:
        self._wrappers = wrappers
        self._lock = ForkedLock()

    def keep(self, wrapper: Keeping, age: Age | None) -> None:
        """Lets other threads close a thread's connection while it is idle.

        Args:
            wrapper: Django's wrapper of the connection.
            age: The times of the connection; None if another process opened it: then it stays as it is.
        """
        if age is not None:
            with self._lock:
                wrapper.kept = wrapper.connection, age

    def claim(self, wrapper: Keeping) -> bool:
        """Takes a thread's connection back for use; False, once, if another thread has closed it."""
        with self._lock:
            lost, wrapper.lost = wrapper.lost, None
            wrapper.kept = None
        return lost is None or lost is not wrapper.connection

    def idle(self) -> list[tuple[Any, Age]]:
        """Returns the connections that are kept, with their ages; not those of a parent process."""
        found = [wrapper.kept for wrapper in self._wrappers.living()]
        return [pair for pair in found if pair is not None and pair[1].process == os.getpid()]

    def take(self, connection: Any) -> bool:
        """Takes a kept connection away from its thread, to close it; False if it is not kept any more."""
        for wrapper in self._wrappers.living():
            with self._lock:
                if wrapper.kept is not None and wrapper.kept[0] is connection:
                    wrapper.kept, wrapper.lost = None, connection
                    return True
        return False


class Keeping:
    """Mixed into Django's wrapper of a connection.

    Attributes:
        kept: The connection and its age while the thread does not need it; None otherwise.
        lost: The connection that another thread has closed, until this one notices.
    """

    kept: tuple[Any, Age] | None = None
    lost: Any = None
    alias: str
    autocommit: bool
    closed_in_transaction: bool
    connection: Any
    _guarded: Any
    _protection: Any

    @property
    def is_checked_out(self) -> bool:
        """True if the connection has a slot."""
        raise NotImplementedError

    @property
    def _keeps(self) -> bool:
        """True if other threads may close the connection while this one does not need it."""
        return self._protection is not None and self._protection.kept is not None

    @property
    def is_kept(self) -> bool:
        """True if the connection waits for its next request, or was closed: no transaction is open."""
        return self._guarded is not None and self._keeps and not self.is_checked_out

    def claim(self) -> None:
        """Takes the connection back for use; forgets one that another thread has closed."""
        if self._keeps and not self._protection.kept.claim(self):
            self.connection = None

    def keep(self) -> None:
        """At the end of a request, lets other threads close the connection while it is idle.

        A connection with ``AUTOCOMMIT: False`` is closed, because it has a transaction that Django did not
        begin, and other threads must not end that.
        """
        if self._guarded is None or not self._keeps or self.connection is None:
            return
        if not self.autocommit:
            self.close()  # type: ignore[attr-defined]  # Django's
        elif self.has_open():  # type: ignore[attr-defined]  # of the other base
            self._protection.kept.keep(self, own_age(self.connection))

    def begin_work(self) -> None:
        """Takes a slot for a kept connection before Django looks at it: without one it may be closed."""
        if self._keeps and self.connection is not None and not self.closed_in_transaction:
            self.admit()  # type: ignore[attr-defined]  # of the other base
            self._notice_loss()  # without a guard, after a detach, `admit` does nothing

    def _notice_loss(self) -> None:
        if self.lost is not None:
            self.claim()

    def ensure_connection(self) -> None:
        """See Django."""
        self._notice_loss()
        super().ensure_connection()  # type: ignore[misc]  # of the other base

    def set_autocommit(self, *args: Any, **kwargs: Any) -> None:
        """See Django."""
        self.begin_work()
        super().set_autocommit(*args, **kwargs)  # type: ignore[misc]  # likewise

    def _cursor(self, *args: Any, **kwargs: Any) -> Any:
        self.begin_work()
        return super()._cursor(*args, **kwargs)  # type: ignore[misc]  # likewise
