"""Workers whose renewals change nothing: they are counted, and computed only when something changes.

Depends on the rule of leases. In a large fleet nearly all renewals say what the last one said,
and get the same reply. A worker *rests* while its next request is known without computing the worker. The
reply to that is the last one, too, by these conditions:

- The request says what the last one said.
- The fair share that the rule gives it is the grant it has. That depends on sums over all workers: on the
  level up to which all are served, and on who has one of the connections that are left then.
- The safe shares fit into the budget. Then its own is not cut. Its grant is not cut in any case: a worker
  keeps what it has up to its fair share.

The rest is ended by whatever changes the worker. The conditions are reviewed when the sums have changed.
Workers that the rule cannot tell apart are one group, so that a review looks at groups. The next request of
each worker of a group that is concerned is then looked at when it reaches the store: the first ones may
settle what concerned all. The rule computes its reply. Only one that changes the
worker's grant ends the rest. ``tests/simulation/test_fleet.py`` holds runs with and without
rests equal.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

from guardrails.fleet._lease_sums import FLOORS, Division
from guardrails.fleet._records import LEASE, Record, Reply, Request
from guardrails.simulation.fleet_worker import Worker
from guardrails.simulation.resting_groups import Group, RestingRecord

__all__ = ["RestingWorkers"]


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
        self._groups: dict[tuple[int, ...], Group] = {}
        self._key: tuple[object, ...] | None = None
        self._division = Division(FLOORS)
        self._equal = 0
        self._balance = 0
        self._giving: list[Group] = []
        self._taking: list[Group] = []
        self.revision = -1
        self.size = self.skipped = 0

    def first(self) -> float:
        """The moment of the next request that is to be looked at."""
        return self._queue[0][0] if self._queue else math.inf

    def look(self) -> None:
        """Looks at the next request: its worker continues resting, or its renewal is computed."""
        moment, _, number, worker = heapq.heappop(self._queue)
        group = worker.rest
        if group is None or worker.last is None or worker.looked_at != moment:
            return
        if worker.is_unsure or group.looks(self._balance):
            self._fleet.now = moment
            self._renew(worker, worker.last, number)
        else:
            worker.looked_at = -1.0
            group.asleep[worker] = None

    def _renew(self, worker: Worker, last: Request, number: int) -> None:
        """Computes a renewal at the store. The worker continues resting if nothing changes for it."""
        fleet, table, lease = self._fleet, self._fleet.table, worker.lease
        self.count(worker, number - 1)
        self._take_reply(worker)
        worker.counted = number
        request = worker.next_request(last, number)
        fleet.sums.note_command(fleet.now)
        self.note_contact()
        worker.coming = reply = table.renew(request, fleet.store_time())
        worker.coming_number = number
        if (
            reply.grant != lease.grant
            or reply.borrowed
            or fleet.is_short(worker, reply) != (worker.short_since is not None)
        ):
            self.wake(worker)
            return
        worker.rest.size -= 1
        self._enter(worker, table.members.get(worker.name), reply)

    def _take_reply(self, worker: Worker) -> None:
        """Gives a worker the reply that was computed last."""
        reply, worker.coming = worker.coming, None
        if reply is not None:
            worker.reply, worker.lease.safe = reply, reply.safe

    def try_to_rest(self, worker: Worker, reply: Reply) -> None:
        """Lets a worker rest that has just got a reply, if its next request is known."""
        last, record = worker.last, self._fleet.table.members.get(worker.name)
        if (
            record is None
            or last is None
            or record.seq != last.seq
            or worker.limit != reply.grant
            or record.cap != last.cap
            or self._fleet.now < self._fleet.frozen_until
            or not worker.is_predictable(worker.clock())
        ):
            return
        self.size += 1
        worker.version += 1
        worker.next_tick = -math.inf
        worker.counted = worker.beats
        self._enter(worker, record, reply)

    def _enter(self, worker: Worker, record: Record, reply: Reply) -> None:
        """Puts a worker into the group of those like it."""
        table = self._fleet.table
        key = record.minimum, record.wants, record.most, record.extra, reply.grant, reply.safe
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(record, reply.safe)
            self._review(group)
        worker.rest = group
        group.size += 1
        record.__class__ = RestingRecord
        worker.is_unsure = (
            record.safe != reply.safe
            or reply.safe != reply.budget // reply.workers
            or self._key is None
            or self._fleet.store_time() < table.until
            or not worker.repeats_its_demand()
        )
        if worker.is_unsure or group.looks(self._balance):
            self._watch(worker)
        else:
            worker.looked_at = -1.0
            group.asleep[worker] = None

    def wake(self, worker: Worker) -> None:
        """Ends a rest: the worker and its record become what they would be if all had been computed."""
        fleet, last, group = self._fleet, worker.last, worker.rest
        if group is None or last is None:
            return
        now, lease = fleet.now, worker.lease
        self.count(worker, worker.arrived(now))
        worker.rest = None
        group.size -= 1
        self.size -= 1
        if worker.looked_at < 0:
            del group.asleep[worker]
        worker.looked_at = -1.0
        skipped = worker.counted - worker.beats
        worker.beats += skipped
        worker.seq += skipped
        before = worker.sends(0)
        arrived = before + worker.delays[0]
        record = fleet.table.members.get(worker.name)
        if record is not None:
            record.__class__ = Record
            # A request that waited for a frozen store was taken later than it arrived.
            record.seq, record.renewed = worker.seq, max(record.renewed, int(arrived * 1000))
            fleet.table.members.reschedule(worker.name)
        fleet.table.last = max(fleet.table.last, int(arrived * 1000))
        lease.asked = lease.renewed = worker.reading(before)
        reply = worker.coming if worker.coming_number == worker.beats else None
        is_on_its_way = skipped and arrived + worker.delays[1] > now
        if not (is_on_its_way and reply is not None):
            self._take_reply(worker)
            reply = worker.reply
        if last.seq != worker.seq:
            last = worker.last = last._replace(seq=worker.seq, safe=lease.safe)
        if is_on_its_way:
            lease.renewed = worker.reading(worker.sends(-1))
            worker.is_asking = True
            fleet.at(arrived + worker.delays[1], fleet.reply, worker, worker, lease.asked, reply)
        worker.coming = None
        self._continue(worker, last)

    def _continue(self, worker: Worker, last: Request) -> None:
        """Lets a worker look at its pool again, with its next request if that is on its way."""
        fleet, lease = self._fleet, worker.lease
        worker.moment_sent, sent = worker.sends(0), worker.sends(1)
        if sent <= fleet.now:
            request = worker.next_request(last, worker.beats + 1)
            worker.seq += 1
            worker.beats += 1
            lease.asked = worker.reading(sent)
            worker.moment_sent, worker.is_asking = sent, True
            fleet.at(sent + worker.delays[0], fleet.receive, None, worker, request, lease.asked)
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

    def count(self, worker: Worker, number: int) -> None:
        """Counts the requests of a worker that rests, up to a number."""
        skipped = number - worker.counted
        if skipped > 0:
            begin = worker.counted - worker.beats + 1
            self._fleet.sums.note_commands(worker.sends, begin, skipped, worker.delays[0])
            worker.counted = number
            self.skipped += skipped

    def count_all(self) -> None:
        """Counts the requests of all that have reached the store."""
        for worker in self._fleet.workers.values():
            if worker.rest is not None:
                self.count(worker, worker.arrived(self._fleet.now))

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
            if sums.safe <= budget:
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

    def _review(self, group: Group) -> None:
        group.review(self._division, is_safe=self._key is not None and group.safe == self._equal)
        if not group.is_concerned and group.gives:
            self._giving.append(group)
        elif not group.is_concerned and group.takes:
            self._taking.append(group)

    def _watch_all(self, group: Group) -> None:
        for worker in group.asleep:
            self._watch(worker)
        group.asleep.clear()

    def _watch(self, worker: Worker) -> None:
        """Looks at the next request of a worker when it reaches the store."""
        number = max(worker.arrived(self._fleet.now), worker.counted) + 1
        worker.looked_at = worker.sends(number - worker.beats) + worker.delays[0]
        heapq.heappush(self._queue, (worker.looked_at, worker.name, number, worker))
