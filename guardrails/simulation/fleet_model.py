"""A fleet in virtual time: workers, a store with the real rule, and the network between them.

Depends on the rules of leases; must not import clocks or threads. Events are handled in the order of their
moments; the invariant is checked at each event that opens connections.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from typing import Any

from guardrails.fleet._lease import LeaseTable
from guardrails.fleet._records import FORGET_AFTER, Reply, Request
from guardrails.simulation.fleet_sums import FleetSums
from guardrails.simulation.fleet_worker import Worker
from guardrails.simulation.resting import RestingWorkers

__all__ = ["SimulatedFleet"]

_BORROWED_FOR = FORGET_AFTER / 1000 + 5.0
"""Seconds for which a floor that was borrowed, or taken without an answer, may exceed the budget."""

_BACKLOG = 511
"""New connections that wait for a store that stands still, Redis' default. Others are not accepted."""


class SimulatedFleet:
    """The workers, the store and the network.

    Args:
        seed: Of everything that is random.
        budget: Connections of all workers together.
        static: Connections that each worker would have if the budget were divided once for all.
        minimum: The floor of each worker.
        most: The pool size of each worker.
        hold: Seconds for which a call holds its connection, on average.
        drift: The largest error of a worker's clock, as a fraction.
        skips: False to compute every renewal, also those that change nothing.

    Attributes:
        now: The time in seconds.
        table: The store.
        frozen_until: Until when the store does not answer; ``calm_from``: from when all is well again.
        workers: The workers that live.
        sums: What is counted.
    """

    def __init__(
        self,
        seed: int,
        *,
        budget: int,
        static: int,
        minimum: int = 1,
        most: int = 100,
        hold: float = 0.1,
        drift: float = 0.0,
        skips: bool = True,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a simulation repeats itself by its seed
        self.budget, self.static, self.minimum, self.most = budget, static, minimum, most
        self.hold, self.drift = hold, drift
        self.now, self.frozen_until, self.calm_from = 1000.0, 0.0, 0.0
        self._waiting: set[Worker] = set()  # workers whose requests wait until the store answers again
        self._accepted = 0
        self.table = LeaseTable()
        self.workers: dict[str, Worker] = {}
        self.sums = FleetSums(self.now)
        self.open, self.allowed = 0, budget
        self._events: list[tuple[float, int, Callable[..., object], Worker | None, tuple[Any, ...]]] = []
        self._numbers = self._names = 0
        self.resting = RestingWorkers(self) if skips else None

    # --- events --------------------------------------------------------------------------------------

    def after(self, seconds: float, what: Callable[..., object], worker: Worker | None, *args: Any) -> None:
        """Does something later; not if the worker has died by then."""
        self.at(self.now + seconds, what, worker, *args)

    def at(self, moment: float, what: Callable[..., object], worker: Worker | None, *args: Any) -> None:
        """Does something at a moment; not if the worker has died by then."""
        self._numbers += 1
        heapq.heappush(self._events, (moment, self._numbers, what, worker, args))

    def run(self, seconds: float) -> None:
        """Runs for so long."""
        until, events, resting, members = self.now + seconds, self._events, self.resting, self.table.members
        while True:
            first = min(until, events[0][0]) if events else until
            if resting is not None:
                if self.table.revision != resting.revision:
                    resting.review()
                changes, looks = members.next_change() / 1000, resting.first()
                if changes <= first and changes <= looks:
                    self.now = max(self.now, changes)
                    self.table.revision += members.settle(max(self.store_time(), math.ceil(changes * 1000)))
                    continue
                if looks <= first:
                    resting.look()
                    continue
            if not events or events[0][0] > until:
                break
            moment, _, what, worker, args = heapq.heappop(events)
            if worker is not None and not worker.alive:
                continue
            self.now = max(self.now, moment)
            what(*args)
        self.now = until
        self.sums.advance(self.now)
        self.count_all()

    def count_all(self) -> None:
        """Counts the commands at the store of the workers that rest."""
        if self.resting is not None:
            self.resting.count_all()

    # --- workers -------------------------------------------------------------------------------------

    def join(self, demand: int = 0) -> Worker:
        """Starts a worker."""
        dice = self.random
        self._names += 1
        worker = Worker(
            self,
            f"w{self._names:06}",
            demand=0,
            offset=dice.uniform(0, 1000),
            rate=1 + dice.uniform(-self.drift, self.drift),
            delays=(dice.uniform(0.0005, 0.02), dice.uniform(0.0005, 0.02)),
        )
        self.workers[worker.name] = worker
        worker.start()
        worker.set_demand(demand)
        return worker

    def kill(self, worker: Worker) -> None:
        """Ends a worker that does not return its lease."""
        self.wake(worker)
        self._end(worker)

    def leave_orderly(self, worker: Worker) -> None:
        """Ends a worker without calls, which returns its lease."""
        self.wake(worker)
        now = worker.clock()
        worker.lease.ask(now, 0, worker.limit, 0)
        self._end(worker)
        worker.busy = worker.idle = worker.ending = 0
        if not worker.cut_off and self.now >= self.frozen_until:
            self._note_contact()
            self.table.leave(worker.request(worker.has(now)), self.store_time())
            self.sums.commands += 1

    def _end(self, worker: Worker) -> None:
        del self.workers[worker.name]
        worker.alive = False
        self.note_demand(-worker.demand, -min(worker.demand, self.static))
        self.note_pool(worker, -worker.busy - worker.idle, worker.ending - worker.busy)
        self.lost(worker, is_lost=False)

    def cut_off(self, worker: Worker, *, cut: bool) -> None:
        """Loses all messages of a worker, or no more."""
        self.wake(worker)
        worker.cut_off, worker.healed_at = cut, math.inf if cut else self.now + 5.0
        worker.disturb()
        self._note_shares(worker)
        if cut:  # the store forgets it then, and it continues with its safe share
            self.after(FORGET_AFTER / 1000 - 2.0, self._forgotten, worker, worker)
        else:
            self.after(6.0, self.lost, worker, worker)

    def _forgotten(self, worker: Worker) -> None:
        if worker.cut_off:
            self.lost(worker, is_lost=True)

    def lost(self, worker: Worker, *, is_lost: bool = False) -> None:
        """Allows the safe share of a worker that the store has forgotten beside the budget, or no more."""
        if is_lost and not worker.lent:
            worker.lent = max(self.minimum, worker.lease.safe)
            self.allowed += worker.lent
        elif not is_lost and not (worker.cut_off and worker.alive):
            self.allowed -= worker.lent
            worker.lent = 0

    # --- the network and the store -------------------------------------------------------------------

    def store_time(self) -> int:
        """The store's clock in milliseconds."""
        return int(self.now * 1000)

    def freeze(self, seconds: float) -> None:
        """The store does not answer for so long."""
        if self.resting is not None:
            self.resting.wake_all()
        if self.now >= self.frozen_until:
            self._waiting, self._accepted = set(), 0
        self.frozen_until = max(self.frozen_until, self.now + seconds)
        self.calm_from = self.frozen_until + 5.0

    def send(self, worker: Worker, request: Request, sent: float) -> None:
        """Sends a request to the store."""
        if not worker.cut_off:
            self.after(worker.delays[0], self.receive, None, worker, request, sent)

    def receive(self, worker: Worker, request: Request, sent: float) -> None:
        """The store answers a request."""
        if self.now < self.frozen_until:
            # The first one waits in a connection that is open. The worker gives it up and connects anew.
            if worker not in self._waiting or self._accepted < _BACKLOG:
                self._accepted += worker in self._waiting
                self._waiting.add(worker)
                self.at(self.frozen_until, self.receive, None, worker, request, sent)
            return
        self.sums.note_command(self.now)
        self._note_contact()
        reply = self.table.renew(request, self.store_time())
        if worker.alive and not worker.cut_off:
            self.after(worker.delays[1], self.reply, worker, worker, sent, reply)

    def _note_contact(self) -> None:
        if self.resting is not None:
            self.resting.note_contact()

    def reply(self, worker: Worker, sent: float, reply: Reply) -> None:
        """A reply reaches its worker."""
        if not worker.cut_off:
            worker.answered(sent, reply)

    def wake(self, worker: Worker) -> None:
        """Ends the rest of a worker, because something changes."""
        if worker.rest is not None and self.resting is not None:
            self.resting.wake(worker)

    def try_to_rest(self, worker: Worker, reply: Reply) -> None:
        """Lets a worker rest whose renewals change nothing."""
        if self.resting is not None:
            self.resting.try_to_rest(worker, reply)

    # --- sums ----------------------------------------------------------------------------------------

    def remaining(self) -> float:
        """Seconds until a call ends that is under way."""
        return self.random.uniform(0.0, 2.0) * self.hold

    def allow(self, many: int) -> None:
        """Allows so many connections beyond the budget for a while, as the protocol's exceptions do."""
        self.allowed += many
        self.after(_BORROWED_FOR, self._allow_no_more, None, many)

    def _allow_no_more(self, many: int) -> None:
        self.allowed -= many
        self.check()

    def note_demand(self, change: int, static_change: int) -> None:
        """The number of callers changes."""
        self.sums.advance(self.now)
        self.sums.demand += change
        self.sums.static += static_change

    def note_pool(self, worker: Worker, opened: int, served: int) -> None:
        """The numbers of open connections and of calls that are served change."""
        if opened or served:
            self.sums.advance(self.now)
            self.sums.served += served
            self.open += opened
            self.sums.highest = max(self.sums.highest, self.open)
            if opened > 0:
                self.check()
        if worker.alive:
            self._note_shares(worker)

    def is_short(self, worker: Worker, reply: Reply | None) -> bool:
        """True if a worker has less than its demand and less than an equal share."""
        equal = self.budget // max(1, reply.workers) if reply is not None else self.minimum
        return worker.limit < min(worker.demand, self.most, equal)

    def _note_shares(self, worker: Worker) -> None:
        limit, sums = worker.limit, self.sums
        is_short = self.is_short(worker, worker.reply)
        if worker.short_since is not None and not is_short:
            calm = worker.short_since >= max(self.calm_from, worker.healed_at)
            sums.note_wait(self.now - worker.short_since, calm=calm)
            worker.short_since = None
        elif worker.short_since is None and is_short:
            worker.short_since = self.now
        if limit < min(self.minimum, self.most) and not worker.cut_off:
            worker.starved_since = self.now if worker.starved_since is None else worker.starved_since
        elif worker.starved_since is not None:
            sums.starved = max(sums.starved, self.now - worker.starved_since)
            worker.starved_since = None

    def check(self) -> None:
        """Checks the invariant."""
        over = self.open - self.budget
        if over > 0:
            self.sums.over = max(self.sums.over, over)
            if self.open > self.allowed:
                self.sums.note_broken(self.now, self.open, self.allowed)
