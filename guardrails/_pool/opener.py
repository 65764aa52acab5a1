"""Opens the idle connections that a pool should have. Depends on the guard; must not import a pool."""

from __future__ import annotations

import math
import os
import time

from guardrails._guard.guard import Guard
from guardrails._pool.idle_pool import IdlePool
from guardrails._runtime.guard_log import log
from guardrails._runtime.scope import deadline, remaining
from guardrails._util.names import fields_of
from guardrails.errors import WarmUpError

__all__ = ["Opener"]

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds without an opening after a failed one; they double with each further failure."""

_POLL_INTERVAL = 0.005
"""Seconds between two checks while another thread or task opens a connection."""

_WORK_STATES = frozenset({"closed", "disabled", "metrics_only"})
"""States of the circuit in which idle connections are pinged and opened; probes are left to callers."""


class Opener:
    """Opens connections until enough are idle, one at a time, each in a slot of its own.

    Args:
        pool: The pool.
        guard: Its guard.
        minimum: Number of idle connections.
    """

    def __init__(self, pool: IdlePool, guard: Guard, minimum: int) -> None:
        self._pool = pool
        self._guard = guard
        self._gate = guard.call_settings.gates[-1]
        self._minimum = minimum
        self._warming = False
        self._opening_in: int | None = None  # the process in which a connection is being opened
        self._pause = _FIRST_PAUSE
        self._next = -math.inf

    @property
    def limit(self) -> int:
        """The number of connections that may be open."""
        return self._gate.core.bulkhead.limit

    @property
    def circuit_allows_work(self) -> bool:
        """True if the circuit lets idle connections be pinged and opened."""
        return self._guard.state in _WORK_STATES

    @property
    def has_room(self) -> bool:
        """True if a slot is free."""
        bulkhead = self._gate.core.bulkhead
        return bulkhead.taken < bulkhead.usable

    def missing(self, now: float) -> int:
        """Returns the number of connections to open now."""
        if now < self._next or self._warming or not self._minimum:
            return 0
        wanted = min(self._minimum, self.limit)
        return max(0, min(wanted - len(self._pool.idle()), self.limit - self._pool.open_count()))

    async def refill(self) -> None:
        """Opens the missing connections. After a failure it pauses: the server may count failed logins."""
        while self.circuit_allows_work and self.missing(time.monotonic()):
            try:
                if not await self._open():
                    return
            except Exception as error:  # noqa: BLE001 - it is evidence, and tried again later
                log.info(
                    "guard %r: an idle connection could not be opened (%s); the next try is in %g s",
                    self._guard.name,
                    type(error).__name__,
                    self._pause,
                    extra=fields_of(self._guard.name),
                )
                self._next = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                return
            self._pause = _FIRST_PAUSE

    async def warm_up(self, seconds: float) -> int:
        """Opens connections until enough are idle; see `Guard.warm_up`."""
        wanted, count, self._warming = min(self._minimum, self.limit), 0, True
        try:
            with deadline(seconds):
                while len(self._pool.idle()) < wanted:
                    self._check_circuit()
                    if await self._open():
                        count += 1
                    elif self._opening_in == os.getpid() and (remaining() or 0.0) > 0:
                        await self._pool.sleep(_POLL_INTERVAL)
                    else:
                        break
        except Exception as error:
            raise WarmUpError(self._guard.name, min(len(self._pool.idle()), wanted), wanted) from error
        finally:
            self._warming = False
        return count

    def take_slot(self) -> bool:
        """Takes a free slot for a ping or an opening; its number is 0."""
        return self._gate.step(self._take_slot)

    def release_slot(self) -> None:
        """Releases a slot of `take_slot`."""
        self._gate.check_in(0)

    def _take_slot(self, now: float) -> bool:
        if self.has_room:
            self._gate.core.adopt(now, 1)
            return True
        return False

    def _check_circuit(self) -> None:
        refusal = self._gate.preview()
        if refusal is not None:
            raise self._gate.refusal_error(refusal)

    def _begin_opening(self, now: float) -> bool:
        """One at a time: two openers that have both counted the connections would open one too many."""
        process = os.getpid()
        if self._opening_in == process or self._pool.open_count() >= self.limit or not self._take_slot(now):
            return False
        self._opening_in = process
        return True

    async def _open(self) -> bool:
        if not self._gate.step(self._begin_opening):
            return False
        try:
            return await self._pool.open()
        finally:
            self._opening_in = None
            self.release_slot()
