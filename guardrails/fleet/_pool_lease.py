"""One guarded pool that follows a lease. Depends on the guard and the worker's rule; must not import a pool.

The housekeeper's thread measures the pool and applies the limit; the fleet's thread asks the store. So a
limit is applied in time however long the store takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from guardrails._core.gate import Gate
from guardrails._guard.compartments import fixed_cores
from guardrails._guard.guard import Guard, set_slots
from guardrails._guard.pool_snapshot import LeaseSnapshot
from guardrails._runtime.scope import remaining
from guardrails.events import FleetBack, FleetLost, LeaseChanged
from guardrails.fleet._budget_log import BudgetLog
from guardrails.fleet._records import GRANTED, TAKEN, Reply, Request
from guardrails.fleet._worker import FleetWorker, Identity
from guardrails.fleet._worker_lease import (
    CLOSING,
    FIRST_WAIT,
    PEAK,
    RENEWAL,
    Peaks,
    WorkerLease,
    demand,
    wanted,
)

__all__ = ["PoolLease"]


class PoolLease:
    """The lease of one guarded pool.

    Args:
        budget: The name of the budget.
        connections: The budget.
        minimum: The worker's floor.
        guard: The pool's guard.
        open_connections: Returns the number of connections that are open or being opened.
        worker: Renews it.

    Attributes:
        connections: The budget that this process names.
        worker: Renews the lease.
        started: True once callers need not wait for the first lease.
        ceiling: The largest limit, from the pool's capacity and `Guard.resize`.
    """

    reports_leaving = is_member = True
    suffix = ""

    def __init__(
        self,
        budget: str,
        connections: int,
        minimum: int,
        guard: Guard,
        open_connections: Callable[[], int],
        worker: FleetWorker,
    ) -> None:
        self.budget = budget
        self.guard = guard
        self.connections = connections
        self._minimum = minimum
        self._open = open_connections
        self.worker = worker
        self._gate = guard.call_settings.gates[-1]
        self.ceiling: int = self._gate.core.bulkhead.limit
        self._log = BudgetLog(budget)
        self.forget()

    def count_with(self, open_connections: Callable[[], int]) -> None:
        """Replaces ``open_connections``, for a guard that is attached to a pool later."""
        self._open = open_connections

    def forget(self) -> None:
        """Drops the lease, at the start and in a child process. The limit is then the floor."""
        self.started = self.is_lost = False
        self.ready = threading.Event()
        self.worker_lease: WorkerLease | None = None
        self.reply: Reply | None = None
        self._seq = 0
        self._had, self._demands = Peaks(CLOSING), Peaks(PEAK)
        self._refused_before = self._refused()
        set_slots(self.guard, min(self._minimum, self.ceiling), closes=False)

    # --- for the pool's hooks ---------------------------------------------------------------------

    @property
    def admits(self) -> bool:
        """True if a caller need not pass `admit`. Read before each checkout."""
        return self.started and self.limit > 0

    def admit(self, wait: Callable[[Any], Any] | None = None) -> None:
        """Joins the fleet before the first connection is opened, and waits a moment for the first lease.

        With a guard that does not enforce, no caller waits.

        Args:
            wait: Runs a coroutine to its end, for asyncio behind a greenlet; None waits in the thread.

        Raises:
            BulkheadFullError: The lease has no connection, and the caller may hold a slot from before.
            DeadlineSpentError: The caller's deadline was over before the first lease came.
        """
        if wait is not None:
            wait(self.admit_async())
            return
        if not self.started:
            self.worker.join(self)
            self.ready.wait(seconds := self._first_wait())
            self._end_first_wait(seconds)
        self._refuse_without_connection()

    def join(self) -> None:
        """Joins the fleet without waiting: the limit is the floor until the first lease."""
        self.worker.join(self)
        self.started = True

    async def admit_async(self) -> None:
        """Joins the fleet without blocking the event loop; see `admit`."""
        if not self.started:
            self.worker.join(self)
            seconds = self._first_wait()
            await _set_soon(self.ready, time.monotonic() + seconds)
            self._end_first_wait(seconds)
        self._refuse_without_connection()

    def _first_wait(self) -> float:
        """Seconds for which a caller may wait for the first lease."""
        left = remaining() if self._gate.core.enforces else 0.0
        return FIRST_WAIT if left is None else max(0.0, min(FIRST_WAIT, left))

    def _end_first_wait(self, seconds: float) -> None:
        if seconds >= FIRST_WAIT or self.ready.is_set() or not self._gate.core.enforces:
            self.started = True
        if not self.started:  # the next caller waits for the rest
            self._gate.refuse("deadline_spent")

    def _refuse_without_connection(self) -> None:
        if self.limit == 0:
            self._gate.refuse("bulkhead_full")

    def leave(self) -> None:
        """Ends the renewal, and returns the lease."""
        self.worker.leave(self)

    @property
    def limit(self) -> int:
        """The number of connections that the guard lets out now."""
        return self._gate.core.bulkhead.limit

    def resize(self, ceiling: int) -> int:
        """Sets the largest limit; returns the limit that counts now."""
        self.ceiling = ceiling
        return min(ceiling, self.worker_lease.limit(time.monotonic()) if self.worker_lease else self._minimum)

    def compare(self, sessions: int) -> None:
        """Warns if the server has more connections of the pool's role than the budget allows."""
        self._log.compare(sessions, self.connections if self.reply is None else self.reply.budget)

    def snapshot(self) -> LeaseSnapshot:
        """Returns the figures of this moment."""
        now, reply, worker_lease = time.monotonic(), self.reply, self.worker_lease
        return LeaseSnapshot(
            budget=self.budget,
            connections=self.connections if reply is None else reply.budget,
            workers=0 if reply is None else reply.workers,
            limit=self.limit,
            safe_share=self._minimum if worker_lease is None else max(self._minimum, worker_lease.safe),
            wants=self._wants(now),
            in_contact=worker_lease is not None and worker_lease.is_in_contact(now),
        )

    # --- the housekeeper's thread -------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """Measures the pool and applies the limit; True if the store is to be asked now."""
        worker_lease = self.worker_lease = self.worker_lease or WorkerLease(self._minimum, now)
        try:
            self._measure(now)
        finally:  # a lease that cannot be measured ends in time all the same
            if worker_lease.grant is not None or now - worker_lease.started >= FIRST_WAIT:
                self._apply(min(self.ceiling, worker_lease.limit(now)))
            self._note_contact(worker_lease, now)
        return worker_lease.is_due(now, self._has(now), self.limit, self._wants(now))

    def _measure(self, now: float) -> None:
        slots = self._gate.core.bulkhead
        self._had.note(now, max(self._open(), slots.taken))
        waiting = sum(len(core.bulkhead.queue) for core in self._cores())
        refused = self._refused()
        refuses = refused > self._refused_before
        self._refused_before = refused
        self._demands.note(now, wanted(slots.taken, waiting, slots.limit, slots.usable, refuses=refuses))

    def _cores(self) -> list[Gate]:
        """The cores that a larger lease gives more slots: not those of compartments with a fixed number."""
        fixed = fixed_cores(self.guard)
        return [gate.core for gate in self._gate.report.gates.living() if gate.core not in fixed]

    def _refused(self) -> int:
        return sum(
            core.rejected.get("bulkhead_full", 0)
            + core.rejected.get("queue_timeout", 0)
            + core.bulkhead.timeouts
            for core in self._cores()
        )

    def _has(self, now: float) -> int:
        return max(self._had.most(now), self._open(), self._gate.core.bulkhead.taken)

    def _wants(self, now: float) -> int:
        return demand(self._demands.most(now), self.ceiling)

    def _apply(self, limit: int) -> None:
        old = self.limit
        if limit != old:
            set_slots(self.guard, limit)
            self._notify(LeaseChanged, budget=self.budget, old=old, new=limit)

    # --- the fleet's thread -------------------------------------------------------------------------

    def request(self, identity: Identity) -> Request:
        """Returns the next request."""
        now = time.monotonic()
        worker_lease = self.worker_lease = self.worker_lease or WorkerLease(self._minimum, now)
        has = self._has(now)
        self._seq += 1
        worker_lease.ask(now, has, self.limit, self._wants(now))
        return Request(
            worker=identity.worker,
            instance=identity.instance,
            seq=self._seq,
            fresh=worker_lease.grant is None,
            has=has,
            cap=worker_lease.told_cap,
            safe=worker_lease.safe,
            wants=worker_lease.told_wants,
            minimum=self._minimum,
            most=self.ceiling,
            budget=self.connections,
            host=identity.host,
        )

    def take_reply(self, reply: Reply) -> bool:
        """Applies the reply to the last request; False if another process has the worker's name."""
        if reply.status == TAKEN:
            return False
        if reply.status == GRANTED and self.worker_lease is not None:
            self.worker_lease.renew(self.worker_lease.asked, reply)
            self.reply = reply
            self._apply(min(self.ceiling, self.worker_lease.limit(time.monotonic())))
            if self.limit:
                self.ready.set()
            self._log.check(reply, self._minimum)
        return True

    def _note_contact(self, worker_lease: WorkerLease, now: float) -> None:
        is_new = worker_lease.grant is None and now - worker_lease.started < 2 * RENEWAL
        is_lost = not (worker_lease.is_in_contact(now) or is_new)
        if is_lost == self.is_lost:
            return
        if is_lost:
            kept = min(self.ceiling, max(self._minimum, worker_lease.safe))
            self._notify(FleetLost, budget=self.budget, keeps=kept)
        else:
            self._notify(FleetBack, budget=self.budget, grant=worker_lease.grant or 0)
        self.is_lost = is_lost

    def _notify(self, kind: type[Any], **fields: Any) -> None:
        self._gate.notify(kind, at=self._gate.clock(), seq=self._gate.next_number(), **fields)


async def _set_soon(ready: threading.Event, until: float) -> None:
    import asyncio  # noqa: PLC0415 - its import takes long, and only this needs it

    while not ready.is_set() and time.monotonic() < until:  # noqa: ASYNC110 - another thread sets it
        await asyncio.sleep(0.005)
