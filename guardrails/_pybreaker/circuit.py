"""A circuit that counts failures in a row in a pybreaker storage. Depends on pybreaker; must not import
listeners.

Each method that can make a transition holds the lock meanwhile and appends the transition to a list. The
caller notifies the listeners after the lock has been released. A storage is foreign code, often behind a
network: its exceptions are logged, and the last known state is used.
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
from guardrails._runtime.fork import LockOwner

__all__ = ["Circuit", "Ticket", "Transition"]

T = TypeVar("T")

_log = logging.getLogger("guardrails")

_PERMIT_DURATION = 10.0
"""Seconds after which a probe's permit expires, so that a lost probe cannot keep the circuit half-open. The
default of ``BreakerPolicy.max_wait_duration_in_half_open_state``."""


_STATES = frozenset((STATE_CLOSED, STATE_HALF_OPEN, STATE_OPEN))
_STORAGE_RAISED = "a circuit's storage raised"


class Ticket(NamedTuple):
    """An admitted call: its generation, its permit (0 if it is no probe) and its start time."""

    generation: int
    permit: int
    started: float


class Transition(NamedTuple):
    """A change of state, by the names of pybreaker's states."""

    at: float
    old: str
    new: str
    cause: str
    retry_after: float | None


class Circuit(LockOwner):
    """The state machine. Each transition starts a new generation; results of earlier ones change nothing.

    Attributes:
        storage: Holds the state and the counters.
        known_state: The state when it was last read.
        generation: Grows with each transition.
        closed_ticket: The ticket of every call in the closed circuit.
        fail_max: Failures in a row that open the circuit.
        reset_timeout: Seconds for which it stays open.
        success_threshold: Successes in half-open that close it.
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
        # Redis increments atomically, so no call has to hold the lock for a round trip.
        self._counts_atomically = isinstance(storage, pybreaker.CircuitRedisStorage)
        self._count_failure = count_failure
        self._numbers = itertools.count(1)
        self._permits: dict[int, float] = {}
        self._stored_opened_at: datetime | None = None
        self._opened_at = 0.0
        self.generation = 0
        self.closed_ticket = Ticket(0, 0, 0.0)
        self.known_state: str = STATE_CLOSED
        self.known_state = self.stored_state()
        if self.known_state == STATE_OPEN:
            self._read_opening_time(clock())

    # --- the state -----------------------------------------------------------------------------

    def stored_state(self) -> str:
        """The state in the storage; the last known one if the storage fails."""
        try:
            stored = self.storage.state
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception(_STORAGE_RAISED)
            return self.known_state
        if stored in _STATES:
            return stored
        _log.warning("a circuit's storage holds the unknown state %r; it stays %s", stored, self.known_state)
        return self.known_state

    def failures(self) -> int:
        """Failures in a row; 1 if the storage fails, so that the caller takes the path with the lock."""
        try:
            return self.storage.counter
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception(_STORAGE_RAISED)
            return 1

    def adopt_stored_state(self, transitions: list[Transition]) -> None:
        """Adopts a state that another process has stored."""
        stored = self.stored_state()
        if stored == self.known_state:
            return
        with self.lock:
            stored = self.stored_state()  # again, as another thread may have adopted it
            if stored == self.known_state:
                return
            now = self.clock()
            if stored == STATE_OPEN:
                self._read_opening_time(now)
            self._enter_state(now, stored, "elsewhere", transitions)

    # --- one call ------------------------------------------------------------------------------

    def admit(self, stored: str, transitions: list[Transition]) -> Ticket | Refusal:
        """Returns a ticket or a refusal. ``stored`` is the state just read from the storage."""
        now = self.clock()
        if stored == self.known_state == STATE_OPEN and now - self._opened_at < self.reset_timeout:
            return self._refuse(now)  # most refusals come here and need no lock
        self.adopt_stored_state(transitions)
        with self.lock:
            if self.known_state == STATE_OPEN:
                if not self._wait_is_over(now):
                    return self._refuse(now)
                self._transition(now, STATE_HALF_OPEN, "wait_over", transitions)
            if self.known_state == STATE_HALF_OPEN:
                return self._acquire_permit(now)
            return Ticket(self.generation, 0, now)

    def succeed(self, ticket: Ticket, transitions: list[Transition]) -> None:
        """Ends a call that succeeded."""
        self.release_permit(ticket)
        with self._counting_lock():
            if ticket.generation != self.generation:
                return
            if self.failures():
                self._write(self.storage.reset_counter)
            if not ticket.permit:
                return
            self._write(self.storage.increment_success_counter)
            if self._read(lambda: self.storage.success_counter, 1) >= self.success_threshold:
                self._transition_if_current(ticket, STATE_CLOSED, "probes_passed", transitions)

    def fail(self, ticket: Ticket, transitions: list[Transition]) -> bool:
        """Ends a call that failed; True if that opened the circuit."""
        self.release_permit(ticket)
        with self._counting_lock():
            if ticket.generation != self.generation:
                return False
            self._write(self._count_failure)
            if ticket.permit:
                return self._transition_if_current(ticket, STATE_OPEN, "probes_failed", transitions)
            if self.failures() >= self.fail_max:
                return self._transition_if_current(ticket, STATE_OPEN, "consecutive_failures", transitions)
            return False

    def release_permit(self, ticket: Ticket) -> None:
        """Frees a probe's permit. For a call without evidence this is all."""
        if ticket.permit:
            self._permits.pop(ticket.permit, None)

    # --- manual transitions --------------------------------------------------------------------

    def set(self, state: str, transitions: list[Transition]) -> None:
        """Makes a manual transition. One to the present state starts it again and is not reported."""
        self.adopt_stored_state(transitions)
        with self.lock:
            before = len(transitions)
            unchanged = state == self.known_state
            self._transition(self.clock(), state, "manual", transitions)
            if unchanged:
                del transitions[before:]

    # --- fork ----------------------------------------------------------------------------------

    def reset_in_child(self) -> None:
        """See ForkAware."""
        super().reset_in_child()
        self._permits.clear()

    # --- called with the lock held -------------------------------------------------------------

    def _wait_is_over(self, now: float) -> bool:
        if now - self._opened_at < self.reset_timeout:
            return False
        if self._read(lambda: self.storage.opened_at, self._stored_opened_at) != self._stored_opened_at:
            self._read_opening_time(now)  # another process has opened it again
        return now - self._opened_at >= self.reset_timeout

    def _acquire_permit(self, now: float) -> Ticket | Refusal:
        for lost in [permit for permit, until in self._permits.items() if now >= until]:
            del self._permits[lost]
        missing = self.success_threshold - self._read(lambda: self.storage.success_counter, 0)
        if len(self._permits) >= max(1, missing):
            return self._refuse(now)
        permit = next(self._numbers)
        self._permits[permit] = now + _PERMIT_DURATION
        return Ticket(self.generation, permit, now)

    def _refuse(self, now: float) -> Refusal:
        wait = None
        if self.known_state == STATE_OPEN:
            wait = max(0.0, self.reset_timeout - (now - self._opened_at))
        return Refusal("circuit_open", wait)

    def _transition_if_current(
        self, ticket: Ticket, state: str, cause: str, transitions: list[Transition]
    ) -> bool:
        with self.lock:
            if ticket.generation != self.generation:
                return False
            self._transition(self.clock(), state, cause, transitions)
            return True

    def _transition(self, now: float, state: str, cause: str, transitions: list[Transition]) -> None:
        storage = self.storage
        self._write(storage.reset_success_counter)
        if state == STATE_CLOSED:
            self._write(storage.reset_counter)
        elif state == STATE_OPEN:
            self._opened_at = now
            self._write(lambda: setattr(storage, "opened_at", datetime.now(UTC)))
            self._stored_opened_at = self._read(lambda: storage.opened_at, None)
        self._write(lambda: setattr(storage, "state", state))
        self._enter_state(now, state, cause, transitions)

    def _enter_state(self, now: float, state: str, cause: str, transitions: list[Transition]) -> None:
        old, self.known_state = self.known_state, state
        self.generation += 1
        self.closed_ticket = Ticket(self.generation, 0, 0.0)
        self._permits.clear()
        wait = max(0.0, self.reset_timeout - (now - self._opened_at)) if state == STATE_OPEN else None
        transitions.append(Transition(now, old, state, cause, wait))

    def _read_opening_time(self, now: float) -> None:
        # Wall-clock time, as the monotonic clock means nothing to another process.
        at = self._stored_opened_at = self._read(lambda: self.storage.opened_at, None)
        if at is None:
            self._opened_at = float("-inf")
            return
        aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        self._opened_at = now - max(0.0, (datetime.now(UTC) - aware).total_seconds())

    # --- the storage ---------------------------------------------------------------------------

    def _counting_lock(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._counts_atomically else self.lock

    def _read(self, read: Callable[[], T], default: T) -> T:
        try:
            return read()
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception(_STORAGE_RAISED)
            return default

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception(_STORAGE_RAISED)
