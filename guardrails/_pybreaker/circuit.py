"""A circuit that counts failures in a row in one of pybreaker's storages. Knows no callers and no listeners.

Each move is one step under the lock; what it changed is appended to the list it is given, for whoever
tells the listeners once the lock has been let go. Storages are other people's code, often a network
away: what they raise is logged, and the last known state holds.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import pybreaker
from pybreaker import STATE_CLOSED, STATE_HALF_OPEN, STATE_OPEN

from guardrails._core.gate import Refusal

__all__ = ["Circuit", "Ticket", "Transition"]

T = TypeVar("T")

_log = logging.getLogger("guardrails")

_LEASE = 10.0
"""Seconds after which a probe that has not ended makes room for another, so that a lost one cannot keep
the circuit half-open; as BreakerPolicy.max_wait_duration_in_half_open_state."""


_STATES = frozenset((STATE_CLOSED, STATE_HALF_OPEN, STATE_OPEN))
_STORAGE_RAISED = "a circuit's storage raised"


class Ticket(NamedTuple):
    """One admitted call: the era it began in, the probe it is (0: none), and when it began."""

    generation: int
    lease: int
    started: float


class Transition(NamedTuple):
    """A transition."""

    at: float
    old: str
    new: str
    cause: str
    retry_after: float | None


class Circuit:
    """The state machine; each transition starts a new era, and what began in an earlier one decides nothing.

    Attributes:
        storage: Where the state and the counters live.
        known: The state as last seen.
        generation: Grows with each transition.
        free_pass: The ticket of a call in the closed circuit.
        lock: Held for single steps.
        fail_max: Failures in a row that open the circuit.
        reset_timeout: Seconds it stays open.
        success_threshold: Successes that close it from half-open.
    """

    def __init__(
        self,
        storage: pybreaker.CircuitBreakerStorage,
        count_failure: Callable[[], None],
        *,
        fail_max: int,
        reset_timeout: float,
        success_threshold: int,
        clock: Callable[[], float],
    ) -> None:
        self.storage = storage
        self.fail_max = fail_max
        self.reset_timeout = reset_timeout
        self.success_threshold = success_threshold
        self.clock = clock
        self.lock = threading.RLock()
        # Redis counts atomically by itself, so that nobody has to queue for its round trips.
        self._counts_alone = isinstance(storage, pybreaker.CircuitRedisStorage)
        self._count_failure = count_failure
        self._numbers = itertools.count(1)
        self._leases: dict[int, float] = {}
        self._opened_at: datetime | None = None
        self._opened = 0.0
        self.generation = 0
        self.free_pass = Ticket(0, 0, 0.0)
        self.known: str = STATE_CLOSED
        self.known = self.stored_state()
        if self.known == STATE_OPEN:
            self._date(clock())

    # --- looking -------------------------------------------------------------------------------

    def stored_state(self) -> str:
        """The state the storage has; the last known one if that cannot be told."""
        try:
            stored = self.storage.state
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception(_STORAGE_RAISED)
            return self.known
        if stored in _STATES:
            return stored
        _log.warning("a circuit's storage holds the unknown state %r; it stays %s", stored, self.known)
        return self.known

    def failures(self) -> int:
        """Failures in a row so far; 1 if that cannot be told, so that somebody looks into it."""
        try:
            return self.storage.counter
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception(_STORAGE_RAISED)
            return 1

    def notice(self, told: list[Transition]) -> None:
        """Takes over a state that somebody else has stored."""
        stored = self.stored_state()
        if stored == self.known:
            return
        with self.lock:
            stored = self.stored_state()  # again, now that no step of ours is under way
            if stored == self.known:
                return
            now = self.clock()
            if stored == STATE_OPEN:
                self._date(now)
            self._turn(now, stored, "elsewhere", told)

    # --- one call ------------------------------------------------------------------------------

    def admit(self, stored: str, told: list[Transition]) -> Ticket | Refusal:
        """Gives a ticket, or says why not. ``stored`` is the state the storage has just had."""
        now = self.clock()
        if stored == self.known == STATE_OPEN and now - self._opened < self.reset_timeout:
            return self._refuse(now)  # the usual refusal takes no lock
        self.notice(told)
        with self.lock:
            if self.known == STATE_OPEN:
                if not self._is_due(now):
                    return self._refuse(now)
                self._go(now, STATE_HALF_OPEN, "wait_over", told)
            if self.known == STATE_HALF_OPEN:
                return self._lease(now)
            return Ticket(self.generation, 0, now)

    def succeed(self, ticket: Ticket, told: list[Transition]) -> None:
        """Ends a call that says the dependency is well."""
        self.give_back(ticket)
        with self._counting():
            if ticket.generation != self.generation:
                return
            if self.failures():
                self._tell_storage(self.storage.reset_counter)
            if not ticket.lease:
                return
            self._tell_storage(self.storage.increment_success_counter)
            if self._ask(lambda: self.storage.success_counter, 1) >= self.success_threshold:
                self._go_if_current(ticket, STATE_CLOSED, "probes_passed", told)

    def fail(self, ticket: Ticket, told: list[Transition]) -> bool:
        """Ends a call that failed; True if that opened the circuit."""
        self.give_back(ticket)
        with self._counting():
            if ticket.generation != self.generation:
                return False
            self._tell_storage(self._count_failure)
            if ticket.lease:
                return self._go_if_current(ticket, STATE_OPEN, "probes_failed", told)
            if self.failures() >= self.fail_max:
                return self._go_if_current(ticket, STATE_OPEN, "consecutive_failures", told)
            return False

    def give_back(self, ticket: Ticket) -> None:
        """Makes room for another probe; all that follows from a call without evidence."""
        if ticket.lease:
            self._leases.pop(ticket.lease, None)

    # --- by hand -------------------------------------------------------------------------------

    def set(self, state: str, told: list[Transition]) -> None:
        """Makes a transition by hand. The state that holds already starts anew, and nobody is told."""
        self.notice(told)
        with self.lock:
            before = len(told)
            unchanged = state == self.known
            self._go(self.clock(), state, "manual", told)
            if unchanged:
                del told[before:]

    # --- fork ----------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:
        """See Survivor."""
        return self.lock.acquire(timeout=seconds)

    def unpause(self) -> None:
        """See Survivor."""
        self.lock.release()

    def start_afresh(self) -> None:
        """See Survivor."""
        self.lock = threading.RLock()
        self._leases.clear()

    # --- steps, with the lock held -------------------------------------------------------------

    def _is_due(self, now: float) -> bool:
        if now - self._opened < self.reset_timeout:
            return False
        if self._ask(lambda: self.storage.opened_at, self._opened_at) != self._opened_at:
            self._date(now)  # another process has opened it again meanwhile
        return now - self._opened >= self.reset_timeout

    def _lease(self, now: float) -> Ticket | Refusal:
        for lost in [lease for lease, until in self._leases.items() if now >= until]:
            del self._leases[lost]
        missing = self.success_threshold - self._ask(lambda: self.storage.success_counter, 0)
        if len(self._leases) >= max(1, missing):
            return self._refuse(now)
        lease = next(self._numbers)
        self._leases[lease] = now + _LEASE
        return Ticket(self.generation, lease, now)

    def _refuse(self, now: float) -> Refusal:
        wait = None
        if self.known == STATE_OPEN:
            wait = max(0.0, self.reset_timeout - (now - self._opened))
        return Refusal("circuit_open", wait)

    def _go_if_current(self, ticket: Ticket, state: str, cause: str, told: list[Transition]) -> bool:
        with self.lock:
            if ticket.generation != self.generation:
                return False
            self._go(self.clock(), state, cause, told)
            return True

    def _go(self, now: float, state: str, cause: str, told: list[Transition]) -> None:
        storage = self.storage
        self._tell_storage(storage.reset_success_counter)
        if state == STATE_CLOSED:
            self._tell_storage(storage.reset_counter)
        elif state == STATE_OPEN:
            self._opened = now
            self._tell_storage(lambda: setattr(storage, "opened_at", datetime.now(UTC)))
            self._opened_at = self._ask(lambda: storage.opened_at, None)
        self._tell_storage(lambda: setattr(storage, "state", state))
        self._turn(now, state, cause, told)

    def _turn(self, now: float, state: str, cause: str, told: list[Transition]) -> None:
        old, self.known = self.known, state
        self.generation += 1
        self.free_pass = Ticket(self.generation, 0, 0.0)
        self._leases.clear()
        wait = max(0.0, self.reset_timeout - (now - self._opened)) if state == STATE_OPEN else None
        told.append(Transition(now, old, state, cause, wait))

    def _date(self, now: float) -> None:
        # The one place that reads the wall clock: another process can say in nothing else when it was.
        at = self._opened_at = self._ask(lambda: self.storage.opened_at, None)
        if at is None:
            self._opened = float("-inf")
            return
        aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        self._opened = now - max(0.0, (datetime.now(UTC) - aware).total_seconds())

    # --- the storage ---------------------------------------------------------------------------

    def _counting(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._counts_alone else self.lock

    def _ask(self, question: Callable[[], T], otherwise: T) -> T:
        try:
            return question()
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception(_STORAGE_RAISED)
            return otherwise

    def _tell_storage(self, order: Callable[[], object]) -> None:
        try:
            order()
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception(_STORAGE_RAISED)
