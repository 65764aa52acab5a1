"""Guards asyncpg's connection holders: each returns its connection in time, and releases the slot.

A pool of asyncpg has a ``PoolConnectionHolder`` for each connection. Every return of a connection calls its
`_release`. Depends on asyncpg's pools; must not import their admission.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg

from guardrails._dbapi.watchdog import GRACE
from guardrails._guard.guard import Guard
from guardrails._pool.checkout import Checkout
from guardrails._pool.checkouts import Checkouts
from guardrails._pool.limits import time_allowed
from guardrails._runtime.guard_log import log
from guardrails.integrations.asyncpg._protocol import ProtocolWork, state_of

if TYPE_CHECKING:
    from guardrails.integrations.asyncpg._revoking import Revocation
    from guardrails.integrations.asyncpg._upkeep import AsyncpgUpkeep

__all__ = ["ConnectionHolders"]


class ConnectionHolders:
    """The guarded connection holders of one pool.

    Args:
        guard: The pool's guard.
        checkouts: The pool's checkouts.
        work: Runs the work of the connections.

    Attributes:
        out: The checkouts by their holders.
        upkeep: Notes each connection that is opened or returned; must be set before `take_over`.
        revocation: Takes connections back that are held idle; None if they may be held.
    """

    upkeep: AsyncpgUpkeep

    def __init__(self, guard: Guard, checkouts: Checkouts, work: ProtocolWork) -> None:
        self._guard = guard
        self._gate = guard.call_settings.gates[0]
        self._checkouts = checkouts
        self._figures = checkouts.figures
        self._work = work
        self._classes: dict[type, type] = {}
        self.out: dict[Any, Checkout] = {}
        self.revocation: Revocation | None = None

    def take_over(self, pool: Any) -> None:
        """Guards the holders of a pool and the connections that they have."""
        for holder in pool._holders:  # noqa: SLF001 - asyncpg has no public way to any of this
            plain = type(holder)
            if plain in self._classes.values():
                continue
            if plain not in self._classes:
                self._classes[plain] = self._guarded(plain)
            holder.__class__ = self._classes[plain]
            if holder.is_connected():
                self.take_over_connection(holder._con, monotonic())  # noqa: SLF001

    def take_over_connection(self, connection: Any, began: float) -> None:
        """Guards a connection whose opening began at a time on ``time.monotonic``."""
        if state_of(connection) is None:
            self._work.take_over(connection, self.upkeep.created(connection), began)

    def restore(self, pool: Any) -> None:
        """Restores the classes of the holders and connections of a pool."""
        for holder in pool._holders:  # noqa: SLF001
            if type(holder) in self._classes.values():
                holder.__class__ = type(holder).__bases__[0]
            if holder.is_connected():
                self._work.restore(holder._con)  # noqa: SLF001
        self.out.clear()
        self._checkouts.clear()

    def hand_out(self, holder: Any, checkout: Checkout) -> None:
        """Begins a checkout. From here on its holder releases the slots."""
        state = state_of(holder._con)  # noqa: SLF001
        self.out[holder] = checkout
        if state is not None:
            state.hand_out(checkout)
        if self.revocation is not None:
            self.revocation.begin(checkout)
        self._checkouts.add(checkout)
        self._figures.handed_out(checkout)

    def claim(self, proxy: Any) -> bool:
        """Begins the return of a connection; False if it was taken back before."""
        if self.revocation is not None and self.revocation.is_revoked(proxy):
            return False
        # A proxy whose connection was returned has none; its holder may have the next user's.
        connected = getattr(proxy, "_con", None) is not None
        checkout = self.out.get(getattr(proxy, "_holder", None)) if connected else None
        if checkout is not None and checkout.hold is not None:
            checkout.hold.begin()  # from here on it cannot be taken back
        return True

    def _guarded(self, plain: Any) -> type:
        holders = self

        async def release(self: Any, timeout: Any) -> None:  # noqa: ASYNC109 - asyncpg's own
            await holders._return(self, partial(plain.release, self), timeout)

        def _release(self: Any) -> None:
            used = self._in_use is not None
            plain._release(self)  # noqa: SLF001
            if used:
                holders._release_slots(self)

        def _release_on_close(self: Any) -> None:
            holders._figures.closed()
            plain._release_on_close(self)  # noqa: SLF001

        own = {
            "__slots__": (),
            "__module__": plain.__module__,
            "release": release,
            "_release": _release,
            "_release_on_close": _release_on_close,
        }
        return type(plain.__name__, (plain,), own)

    async def _return(self, holder: Any, release: Callable[..., Any], timeout: Any) -> None:  # noqa: ASYNC109
        """Returns a connection to the pool, within the time of a piece of work."""
        connection, checkout = holder._con, self.out.get(holder)  # noqa: SLF001
        state = None if connection is None or connection.is_closed() else state_of(connection)
        if state is None:
            await release(timeout)
            return
        state.returning = True
        if state.stopped or (checkout is not None and checkout.must_discard):
            self._figures.invalidated()
            await self._close(connection)
            return
        if not self._gate.core.enforces:
            await release(timeout)
            return
        if self.upkeep.life.acts and self.upkeep.must_close(state.age):
            await self._close(connection)
            return
        seconds, _ = time_allowed(self._guard if checkout is None else checkout.guard)
        limit = None if seconds is None else max(seconds, GRACE)
        ours = limit is not None and (timeout is None or limit < timeout)
        try:
            await release(limit if ours else timeout)
        except TimeoutError:
            # The caller's work is done, and asyncpg has closed the connection.
            if not ours:
                raise
            log.debug("a connection of %r did not return to its pool in time", self._guard.name)

    async def _close(self, connection: Any) -> None:
        """Closes a connection: an order to stop its work may still be under way to the server."""
        try:
            await connection.close(timeout=GRACE)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()

    def _release_slots(self, holder: Any) -> None:
        checkout = self.out.pop(holder, None)
        if checkout is None:
            self._gate.check_in(0)
            return
        connection = holder._con  # noqa: SLF001
        if connection is not None and not connection.is_closed():
            state = state_of(connection)
            if state is not None:
                state.hand_out(None)
        checkout.release_slots()
        self._checkouts.remove(checkout)
