"""Workers whose renewals change nothing: they are counted, and computed only when something changes.

Depends on the rule of leases. In a large fleet nearly all renewals say what the last one said,
and get the same reply. A worker *rests* while that is certain, by these conditions:

- Its own state is constant: the next request would say the same.
- The fair share that the rule gives it is the grant it has. That depends on sums over all workers: on the
  level up to which all are served, and on who has one of the connections that are left then.
- What is reserved fits into the budget, and so do the safe shares. Then its grant is not cut.

The first is ended by whatever changes the worker. The others are checked at each of its renewals, when the
request would reach the store. ``tests/simulation/test_fleet.py`` holds runs with and without rests equal.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

from guardrails.fleet._lease_sums import FLOORS, Division
from guardrails.fleet._records import LIVE, Record, Reply
from guardrails.fleet._table import NEVER
from guardrails.simulation.fleet_worker import PERIOD, Worker

__all__ = ["RestingWorkers"]


class _RestingRecord(Record):
    """The record of a worker that renews its lease all the time."""

    __slots__ = ()

    def state(self, now: int) -> int:  # noqa: ARG002 - as the table calls it
        return LIVE

    def changes_at(self, state: int) -> int:  # noqa: ARG002 - likewise
        return NEVER


class RestingWorkers:
    """The workers that rest.

    Attributes:
        skipped: Renewals that were not computed.
    """

    def __init__(self, fleet: Any) -> None:  # a SimulatedFleet, which this module must not import
        self._fleet = fleet
        # (moment at which the request reaches the store, name, moment at which it is sent, worker)
        self._queue: list[tuple[float, str, float, Worker]] = []
        self._revision = -1
        self._key: tuple[object, ...] | None = None
        self._version = 0
        self._division = Division(FLOORS)
        self._equal = 0
        self._balance = 0
        self.skipped = 0

    def first(self) -> float:
        """The moment of the next renewal."""
        queue = self._queue
        while queue and queue[0][3].steady != queue[0][2]:
            heapq.heappop(queue)
        return queue[0][0] if queue else math.inf

    def run(self, until: float) -> None:
        """Makes the renewals up to a moment, or up to the first one that ends a rest."""
        fleet, queue, table = self._fleet, self._queue, self._fleet.table
        sums, settle = fleet.sums, table.members.settle
        while queue and queue[0][0] <= until:
            arrival, name, sent, worker = queue[0]
            if worker.steady != sent:
                heapq.heappop(queue)
                continue
            fleet.now = arrival
            now = int(arrival * 1000)
            if settle(now):
                table.revision += 1
            if table.revision != self._revision:
                self._refresh()
            version, has_extra, may_grow = worker.rest
            balance = self._balance
            if version != self._version or (balance and (has_extra if balance > 0 else may_grow)):
                heapq.heappop(queue)
                self.wake(worker)
                return
            table.last = max(table.last, now)
            sums.note_command(arrival)
            self.skipped += 1
            worker.skipped += 1
            worker.steady = sent = sent + PERIOD / worker.rate
            heapq.heapreplace(queue, (sent + worker.delays[0], name, sent, worker))

    def try_to_rest(self, worker: Worker, reply: Reply) -> None:
        """Lets a worker rest that has just got a reply, if it may."""
        fleet, table = self._fleet, self._fleet.table
        last, holder, record = worker.last, worker.holder, table.members.get(worker.name)
        if record is None or last is None or record.seq != last.seq or worker.limit != reply.grant:
            return
        if fleet.now < fleet.frozen_until or not worker.is_settled(worker.clock()):
            return
        if table.members.settle(fleet.store_time()):
            table.revision += 1
        if table.revision != self._revision:
            self._refresh()
        may_grow = self._division.may_have_more(record)
        if (
            self._key is None
            or fleet.store_time() < table.until
            or (record.extra and not may_grow)
            or self._division.share(record) + record.extra != reply.grant
            or not min(record.minimum, record.most) <= reply.grant <= record.cap
            or not holder.safe == record.safe == reply.safe == self._equal
            or record.cap != last.cap
        ):
            return
        worker.rest = (self._version, record.extra, may_grow and not record.extra)
        worker.skipped = 0
        worker.version += 1
        worker.steady = worker.moment_sent + PERIOD / worker.rate
        record.__class__ = _RestingRecord
        heapq.heappush(self._queue, (worker.steady + worker.delays[0], worker.name, worker.steady, worker))

    def wake(self, worker: Worker) -> None:
        """Ends a rest: the worker and its record become what they would be if all had been computed."""
        fleet, last, reply, sent = self._fleet, worker.last, worker.reply, worker.steady
        if sent is None or last is None or reply is None:
            return
        worker.steady = None
        now, period = fleet.now, PERIOD / worker.rate
        before, holder = sent - period, worker.holder
        if not worker.skipped:
            before = worker.moment_sent
        arrived = before + worker.delays[0]
        worker.seq += worker.skipped
        last = worker.last = last._replace(seq=worker.seq)
        record = fleet.table.members.get(worker.name)
        if record is not None:
            record.__class__ = Record
            record.seq, record.renewed = worker.seq, int(arrived * 1000)
            fleet.table.members.reschedule(worker.name)
        holder.asked = holder.renewed = worker.reading(before)
        if worker.skipped and arrived + worker.delays[1] > now:  # the reply is still on its way
            holder.renewed = worker.reading(before - period)
            worker.is_asking = True
            fleet.at(arrived + worker.delays[1], fleet.reply, worker, worker, holder.asked, reply)
        worker.moment_sent = before
        if sent <= now:  # the next request is on its way
            worker.seq += 1
            worker.last = last._replace(seq=worker.seq)
            holder.asked = worker.reading(sent)
            worker.moment_sent, worker.is_asking = sent, True
            fleet.at(sent + worker.delays[0], fleet.receive, None, worker, worker.last, holder.asked)
            sent += period
        worker.note(worker.moment_sent)
        fleet.at(sent, worker.tick, worker, worker.version)

    def wake_all(self) -> None:
        """Ends every rest."""
        for worker in list(self._fleet.workers.values()):
            if worker.steady is not None:
                self.wake(worker)

    def _refresh(self) -> None:
        """Computes what the fair shares depend on, after the sums have changed."""
        table, sums = self._fleet.table, self._fleet.table.sums
        self._revision = table.revision
        key = None
        if sums.budgets:
            budget, absent = min(sums.budgets), sums.held_by_silent + sums.held_by_left
            self._division = division = sums.divide(budget - absent)
            self._equal = budget // (sums.live + sums.silent)
            self._balance = sums.extra - division.left
            if sums.cap + absent <= budget and sums.safe <= budget:
                key = (division.mode, division.level, self._equal)
        if key != self._key or key is None:
            self._version += 1
        self._key = key
