"""Takes Django's connections back that are held idle for longer than ``max_idle_hold``.

Must not open, make or look for a pool. A connection of Django's belongs to one thread. Another one only
closes it; its own thread learns of that before its next statement, and forgets the connection then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from guardrails._dbapi.runner import StatementRunner
from guardrails._pool.checkout import Checkout
from guardrails._pool.frames import lines
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.idle_hold import IdleHold
from guardrails._pool.idle_hold_limit import IdleHoldLimit
from guardrails._runtime.holding import holding, on_enter
from guardrails.errors import ConnectionRevokedError
from guardrails.integrations.django._database.connections import ages_of
from guardrails.integrations.django._database.server_question import Login

__all__ = ["Revocable", "Revocation"]


class Revocation:
    """The limit for the idle holds of the connections behind one guard.

    Args:
        registry: The holders of the connections.
        seconds: The limit.
        runner: Closes the connections.
        leave: Releases the slots of a checkout.
    """

    def __init__(
        self,
        registry: HolderRegistry,
        seconds: float,
        runner: StatementRunner,
        leave: Callable[[Any], None],
    ) -> None:
        self._registry = registry
        self._runner = runner
        self._leave = leave
        self._limit: IdleHoldLimit[Any] = IdleHoldLimit(
            registry.guard, seconds, self._holds, self._take_back, lambda out: (lines(out.site), out.request)
        )
        on_enter(self)

    def begin(self, checkout: Checkout) -> None:
        """Gives a new checkout its hold."""
        checkout.hold = IdleHold(self._limit.now())
        if not self._limit.watching:
            self._limit.watch()

    def handed_out(self, checkout: Checkout) -> None:
        """Lets a connection count as idle: its caller has it."""
        if checkout.hold is not None:
            checkout.hold.hand_out(self._limit.now())

    def cover(self, block: holding) -> None:
        """See `on_enter`."""
        caller = self._registry.caller()
        for hold, checkout in self._holds():
            if checkout.caller == caller:
                hold.cover(block)

    def _holds(self) -> Iterable[tuple[IdleHold, Any]]:
        out = list(self._registry.out.values())
        return [(checkout.hold, checkout) for checkout in out if checkout.hold is not None]

    def _take_back(self, checkout: Any) -> None:
        wrapper = checkout.wrapper()
        connection = None if wrapper is None else wrapper.connection
        if connection is None:
            return  # its thread has ended, or closes it
        now, where, route = self._limit.now(), lines(checkout.site), checkout.route
        seconds = checkout.hold.idle_for(now)
        arguments = (self._registry.guard.name, seconds, where, route)

        check_later: Callable[[], object] = bool

        def cut() -> bool:
            nonlocal check_later
            lock = wrapper.lock_of(connection)
            if wrapper.connection is not connection or not lock.acquire(blocking=False):
                return False
            try:
                check_later = self._identify(wrapper, connection, seconds)
                self._runner.kill(connection)  # first: a server that does not answer must not delay the close
                self._runner.retire(connection)
            finally:
                lock.release()
            return True

        if checkout.hold.take_back(now, self._limit.seconds, lambda: ConnectionRevokedError(*arguments), cut):
            checkout.reported = False
            self._leave(checkout)
            self._registry.figures.invalidated()
            wrapper.note_revoked(connection)
            check_later()
            self._limit.log(where, route, seconds)

    def _identify(self, wrapper: Any, connection: Any, idle: float) -> Callable[[], object]:
        """Returns what checks later that the server has ended the session of a connection."""
        sessions = self._registry.revoked_sessions
        if sessions is not None:
            with suppress(Exception):  # it is broken, or older than the guard
                return sessions.identify(connection, idle, *ages_of(connection), Login(wrapper))
        return bool


class Revocable:
    """Mixed into Django's wrapper of a connection: its side of a connection that was taken back."""

    connection: Any
    closed_in_transaction: bool
    _checkout: Any
    _note_closed: Callable[[], object]

    @property
    def _hold(self) -> IdleHold | None:
        checkout = self._checkout
        return None if checkout is None else checkout.hold

    @property
    def _is_revoked(self) -> bool:
        return self._hold is not None and self._hold.revoked

    def lock_of(self, connection: Any) -> Any:  # noqa: ARG002 - a driver may have one
        """Returns the lock that the driver holds while it works; a new one where it has none."""
        return threading.Lock()

    def note_revoked(self, connection: Any) -> None:  # noqa: ARG002 - a pool takes it
        """Notes that a connection was taken back; called in another thread."""
        self._note_closed()

    def hide_work(self) -> None:
        """Exempts the connection: work begins on it that is not run step by step.

        Raises:
            ConnectionRevokedError: It was taken back.
        """
        if self._hold is not None:
            self._hold.set_exempt(on=True)

    def create_cursor(self, name: str | None = None) -> Any:
        """See Django."""
        try:
            return super().create_cursor(name)  # type: ignore[misc]  # of the other base
        except Exception as error:
            hold = self._hold
            if hold is None or not hold.revoked:
                raise
            self._forget()
            raise hold.new_error() from error

    def close_if_unusable_or_obsolete(self) -> None:
        """See Django, which calls it before and after each request."""
        if self._is_revoked:
            self._forget()
        super().close_if_unusable_or_obsolete()  # type: ignore[misc]  # of the other base

    def _close(self) -> None:
        try:
            if self._hold is not None:
                self._hold.begin()  # from here on it cannot be taken back
        except ConnectionRevokedError:
            return  # it is closed
        super()._close()  # type: ignore[misc]  # of the other base

    def _forget(self) -> None:
        """Forgets a connection that is closed."""
        self.close()  # type: ignore[attr-defined]  # Django's
        # Or Django would open another one, to end the transaction that ended with this one.
        self.closed_in_transaction = True
