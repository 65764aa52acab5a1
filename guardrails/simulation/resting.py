"""Workers whose renewals change nothing: they are counted, and computed only when something changes.

Depends on the rule of leases. In a large fleet nearly all renewals say what the last one said,
and get the same reply. A worker *rests* while that is certain, by these conditions:

- Its own state is constant: the next request would say the same.
- The fair share that the rule gives it is the grant it has. That depends on sums over all workers: on the
  level up to which all are served, and on who has one of the connections that are left then.
- What is reserved fits into the budget, and so do the safe shares. Then its grant is not cut.

The first is ended by whatever changes the worker. The others are reviewed when the sums have changed.
Workers that the rule cannot tell apart are one group, so that a review looks at groups. The next request of
each worker of a group that is concerned is then looked at when it reaches the store: the first ones may
settle what concerned all. ``tests/simulation/test_fleet.py`` holds runs with and without rests equal.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from typing import Any

from guardrails.fleet._lease_sums import FLOORS, Division
from guardrails.fleet._records import LEASE, LIVE, Record, Reply
from guardrails.fleet._table import NEVER
from guardrails.simulation.fleet_worker import Worker

__all__ = ["RestingWorkers"]


class _RestingRecord(Record):
    """The record of a worker that renews its lease all the time."""

    __slots__ = ()

    def state(self, now: int) -> int:  # noqa: ARG002 - as the table calls it
        return LIVE

    def changes_at(self, state: int) -> int:  # noqa: ARG002 - likewise
        return NEVER


class _Group:
    """Resting workers that the rule cannot tell apart.

    Args:
        record: The record of one of them.
        safe: The safe share of each.

    Attributes:
        size: Number of workers.
        asleep: Those whose next request need not be looked at.
        is_concerned: True if the rule would give another reply to each.
        gives: True if the first to ask loses its extra connection when there are too many; ``takes`` if the
            first to ask gets one of those that are left.
    """

    __slots__ = ("_extra", "_grant", "_record", "asleep", "gives", "is_concerned", "safe", "size", "takes")

    def __init__(self, record: Record, safe: int) -> None:
        self._record, self._extra, self._grant, self.safe = replace(record), record.extra, record.grant, safe
        self.size = 0
        self.asleep: dict[Worker, None] = {}  # in the order in which they came
        self.is_concerned = self.gives = self.takes = False

    def review(self, division: Division, *, is_safe: bool) -> None:
        """Notes what a division means to its workers."""
        may_grow = division.may_have_more(self._record)
        share = division.share(self._record) + self._extra
        self.is_concerned = not is_safe or share != self._grant or (self._extra and not may_grow)
        self.gives, self.takes = self._extra, may_grow and not self._extra

    def looks(self, balance: int) -> bool:
        """True if the next request of each is to be looked at."""
        return self.is_concerned or (self.gives if balance > 0 else self.takes and balance < 0)


class RestingWorkers:
    """The workers that rest.

    Attributes:
        size: Number of workers.
        skipped: Renewals that were not computed.
        revision: Of the table, at the last review.
    """

    def __init__(self, fleet: Any) -> None:  # a SimulatedFleet, which this module must not import
        self._fleet = fleet
        # (moment at which a request reaches the store that is to be looked at, name, its number, worker)
        self._queue: list[tuple[float, str, int, Worker]] = []
        self._groups: dict[tuple[int, ...], _Group] = {}
        self._key: tuple[object, ...] | None = None
        self._division = Division(FLOORS)
        self._equal = 0
        self._balance = 0
        self._giving: list[_Group] = []
        self._taking: list[_Group] = []
        self.revision = -1
        self.size = self.skipped = 0

    def first(self) -> float:
        """The moment of the next request that is to be looked at."""
        return self._queue[0][0] if self._queue else math.inf

    def look(self) -> None:
        """Looks at the next request: its worker continues resting, or is woken."""
        moment, _, number, worker = heapq.heappop(self._queue)
        group = worker.rest
        if group is None or worker.looked_at != number:
            return
        if group.looks(self._balance):
            self._fleet.now = moment
            self.wake(worker)
        else:
            worker.looked_at = -1
            group.asleep[worker] = None

    def try_to_rest(self, worker: Worker, reply: Reply) -> None:
        """Lets a worker rest that has just got a reply, if it may."""
        fleet, table = self._fleet, self._fleet.table
        last, lease, record = worker.last, worker.lease, table.members.get(worker.name)
        if record is None or last is None or record.seq != last.seq or worker.limit != reply.grant:
            return
        if (
            self._key is None
            or fleet.now < fleet.frozen_until
            or fleet.store_time() < table.until
            or not min(record.minimum, record.most) <= reply.grant <= record.cap == last.cap
            or not lease.safe == record.safe == reply.safe == self._equal
            or not worker.is_settled(worker.clock())
        ):
            return
        key = record.minimum, record.wants, record.most, record.extra, reply.grant, reply.safe
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(record, reply.safe)
            self._review(group)
        if group.is_concerned:
            return
        worker.rest = group
        group.size += 1
        self.size += 1
        worker.version += 1
        worker.next_tick = -math.inf
        worker.counted = worker.beats
        record.__class__ = _RestingRecord
        if group.looks(self._balance):
            self._watch(worker)
        else:
            group.asleep[worker] = None

    def wake(self, worker: Worker) -> None:
        """Ends a rest: the worker and its record become what they would be if all had been computed."""
        fleet, last, reply, group = self._fleet, worker.last, worker.reply, worker.rest
        if group is None or last is None or reply is None:
            return
        self.count(worker)
        worker.rest = None
        group.size -= 1
        self.size -= 1
        if worker.looked_at < 0:
            del group.asleep[worker]
        worker.looked_at = -1
        now, lease, skipped = fleet.now, worker.lease, worker.counted - worker.beats
        worker.beats += skipped
        before = worker.sends(0)
        arrived = before + worker.delays[0]
        worker.seq += skipped
        last = worker.last = last._replace(seq=worker.seq)
        record = fleet.table.members.get(worker.name)
        if record is not None:
            record.__class__ = Record
            record.seq, record.renewed = worker.seq, int(arrived * 1000)
            fleet.table.members.reschedule(worker.name)
        fleet.table.last = max(fleet.table.last, int(arrived * 1000))
        lease.asked = lease.renewed = worker.reading(before)
        if skipped and arrived + worker.delays[1] > now:  # the reply is still on its way
            lease.renewed = worker.reading(worker.sends(-1))
            worker.is_asking = True
            fleet.at(arrived + worker.delays[1], fleet.reply, worker, worker, lease.asked, reply)
        worker.moment_sent, sent = before, worker.sends(1)
        if sent <= now:  # the next request is on its way
            worker.seq += 1
            worker.beats += 1
            worker.last = last._replace(seq=worker.seq)
            lease.asked = worker.reading(sent)
            worker.moment_sent, worker.is_asking = sent, True
            fleet.at(sent + worker.delays[0], fleet.receive, None, worker, worker.last, lease.asked)
            sent = worker.sends(1)
        worker.note(worker.moment_sent)
        worker.tick_at(sent)

    def note_contact(self) -> None:
        """Notes that workers that rest have asked the store lately: so it does not begin to learn."""
        if self.size:
            table = self._fleet.table
            table.last = max(table.last, self._fleet.store_time() - LEASE // 2)

    def wake_all(self) -> None:
        """Ends every rest."""
        for worker in list(self._fleet.workers.values()):
            self.wake(worker)

    def count(self, worker: Worker) -> None:
        """Counts the requests of a worker that have reached the store since it rests."""
        skipped = worker.arrived(self._fleet.now) - worker.counted
        if skipped > 0:
            begin = worker.counted - worker.beats + 1
            self._fleet.sums.note_commands(worker.sends, begin, skipped, worker.delays[0])
            worker.counted += skipped
            self.skipped += skipped

    def count_all(self) -> None:
        """Counts the requests of all."""
        for worker in self._fleet.workers.values():
            if worker.rest is not None:
                self.count(worker)

    def review(self) -> None:
        """Finds the groups that are concerned, after the sums have changed."""
        table, sums = self._fleet.table, self._fleet.table.sums
        self.revision = table.revision
        key = None
        if sums.budgets:
            budget, absent = min(sums.budgets), sums.held_by_silent + sums.held_by_left
            self._division = division = sums.divide(budget - absent)
            self._equal = budget // (sums.live + sums.silent)
            self._balance = sums.extra - division.left
            if sums.cap + absent <= budget and sums.safe <= budget:
                key = (division.mode, division.level, self._equal)
        if key != self._key or key is None:
            self._key = key
            self._giving, self._taking = [], []
            self._groups = {each: group for each, group in self._groups.items() if group.size}
            for group in self._groups.values():
                self._review(group)
                if group.is_concerned:
                    self._watch_all(group)
        if self._balance:
            for group in self._giving if self._balance > 0 else self._taking:
                if group.asleep:
                    self._watch_all(group)

    def _review(self, group: _Group) -> None:
        group.review(self._division, is_safe=self._key is not None and group.safe == self._equal)
        if not group.is_concerned and group.gives:
            self._giving.append(group)
        elif not group.is_concerned and group.takes:
            self._taking.append(group)

    def _watch_all(self, group: _Group) -> None:
        for worker in group.asleep:
            self._watch(worker)
        group.asleep.clear()

    def _watch(self, worker: Worker) -> None:
        """Looks at the next request of a worker when it reaches the store."""
        number = worker.looked_at = worker.arrived(self._fleet.now) + 1
        arrival = worker.sends(number - worker.beats) + worker.delays[0]
        heapq.heappush(self._queue, (arrival, worker.name, number, worker))
