"""One worker of a simulated fleet: a pool that follows its lease by the real rule, in virtual time.

Depends on the rules of leases; must not import threads, clocks or guards. Calls are counted, not made: a
worker serves as many of its callers as its limit allows, and a call that ends late keeps its connection.
"""

from __future__ import annotations

import math
from typing import Any

from guardrails.fleet._records import GRANTED, Reply, Request
from guardrails.fleet._worker_lease import (
    CLOSING,
    CONTACT,
    FIRST_WAIT,
    GROW_AFTER,
    PEAK,
    QUICKEST,
    RENEWAL,
    Peaks,
    WorkerLease,
    demand,
    wanted,
)

__all__ = ["PERIOD", "Worker"]

TICK = 0.1
"""Seconds between two looks at the pool, as in a process."""

PERIOD = RENEWAL + 1e-6
"""Seconds between two renewals, a little more so that rounding makes none early."""

TIMEOUT = 0.5
"""Seconds after which a request is given up."""


class Worker:
    """One process with one pool.

    Args:
        fleet: The fleet.
        name: Its name.
        demand: Callers that it would serve at once.
        phase: Seconds from its ticks to whole tenths on its own clock.
        rate: Seconds of its clock in a second.
        delays: Seconds that a message takes to the store, and back.

    Attributes:
        busy: Connections in use.
        ending: Those of them whose callers are the last: no caller uses the connection after them.
        idle: Connections that are open and not in use.
        limit: Connections that it may have open.
        last: The last request, and ``moment_sent`` when it was sent.
        cut_off: True while its messages are lost.
        is_asking: True until the last request is answered.
        healed_at: From when it is in contact again after it was cut off.
        lent: Connections that it may have beside the budget, because the store has forgotten it.
        leaving: True once it gets no callers any more.
        reply: The last reply.
        next_tick: When it looks at its pool again.
        short_since: When its demand rose above what it was given; None while it has that.
        starved_since: When it fell below its floor; None while it is not.
        base: The moment of a request after which it has renewed its lease once in a period; ``beats`` the
            number of such renewals.
        rest: While it rests: the group of workers like it; else None.
        counted: While it rests: the number of the last of its renewals that is counted.
        looked_at: While it rests: the moment at which its renewal is looked at at the store; -1 for none.
        is_unsure: While it rests: True if its next renewal is to be computed in any case.
        coming: While it rests: the reply that was computed last, if it has not got that;
            ``coming_number`` is the renewal's.
    """

    def __init__(
        self,
        fleet: Any,  # a SimulatedFleet, which this module must not import
        name: str,
        *,
        demand: int,
        offset: float,
        rate: float,
        delays: tuple[float, float],
    ) -> None:
        self.fleet: Any = fleet
        self.name, self.instance = name, f"{int(name[1:]):x}"
        self.offset, self.rate, self.delays = offset, rate, delays
        self.demand = demand
        self.busy = self.ending = self.idle = self.limit = self.seq = 0
        self.alive = True
        self.cut_off = self.is_asking = self.leaving = False
        self.lent, self.healed_at = 0, 0.0
        self.had, self.demands = Peaks(CLOSING), Peaks(PEAK)
        self.lease = WorkerLease(fleet.minimum, self.clock())
        self.reply: Reply | None = None
        self.last: Request | None = None
        self.next_tick = -math.inf
        self.version = 0
        self.moment_sent: float = fleet.now
        self.base: float = fleet.now
        self.period: float = PERIOD / rate
        self.beats = self.counted = 0
        self.rest: Any = None
        self.looked_at = -1.0
        self.is_unsure = False
        self.coming: Reply | None = None
        self.coming_number = 0
        self.short_since: float | None = fleet.now
        self.starved_since: float | None = None

    # --- time ----------------------------------------------------------------------------------------

    def clock(self) -> float:
        """Its own monotonic clock."""
        return self.reading(self.fleet.now)

    def reading(self, moment: float) -> float:
        """What its clock shows at a moment."""
        return self.offset + moment * self.rate

    def sends(self, number: int) -> float:
        """The moment of a renewal, counted from the last one, if nothing happens."""
        return self.base + (self.beats + number) * self.period

    def arrived(self, moment: float) -> int:
        """The number of the last renewal that has reached the store before a moment, counted from `base`."""
        base, period, delay = self.base, self.period, self.delays[0]
        number = int((moment - base - delay) / period)
        while base + number * period + delay >= moment:
            number -= 1
        while base + (number + 1) * period + delay < moment:
            number += 1
        return number

    # --- the pool ------------------------------------------------------------------------------------

    def set_demand(self, many: int) -> None:
        """Changes the number of callers."""
        self.fleet.wake(self)
        self.note(self.fleet.now)
        self.fleet.note_demand(many - self.demand, self._fair(many) - self._fair(self.demand))
        if many > self.demand and self.short_since is None:
            self.short_since = self.fleet.now
        self.demand = many
        self.disturb()
        self.update()

    def _fair(self, many: int) -> int:
        return min(many, int(self.fleet.static))

    def disturb(self) -> None:
        """Something has changed: looks at the pool in each tick for a while."""
        self.fleet.wake(self)
        moment = self.fleet.now + self._to_tick()
        if not self.fleet.now < self.next_tick <= moment:
            self.tick_at(moment)

    def update(self) -> None:
        """Applies the limit: idle connections are closed, calls start, and those in excess end in time."""
        fleet, opened = self.fleet, self.busy + self.idle
        serving = self.busy - self.ending
        now = self.offset + fleet.now * self.rate
        limit = self.limit = min(fleet.most, self.lease.limit(now))
        if opened > limit:
            self.had.note(now, opened)
            self.idle -= min(self.idle, opened - limit)
        goal = min(self.demand, limit)
        if serving > goal:
            for _ in range(serving - goal):
                fleet.after(fleet.remaining(), self.call_ended, self)
            self.ending += serving - goal
        elif serving < goal:
            new = max(0, min(goal - serving, limit - self.busy))
            self.idle -= min(self.idle, new)
            self.busy += new
        fleet.note_pool(self, self.busy + self.idle - opened, self.busy - self.ending - serving)
        self.demands.note(now, self._wanted())

    def note(self, moment: float) -> None:
        """Notes the demand that it had at a moment."""
        self.demands.note(self.reading(moment), self._wanted())

    def _wanted(self) -> int:
        queued = max(0, self.demand - self.busy)
        return wanted(self.busy, min(queued, self.limit), self.limit, self.limit, refuses=queued > self.limit)

    def call_ended(self) -> None:
        """The last caller on a connection has left."""
        self.busy -= 1
        self.ending -= 1
        self.idle += 1
        if self.busy + self.idle > self.limit:
            self.disturb()
        self.update()

    # --- the lease -----------------------------------------------------------------------------------

    def tick(self, version: int) -> None:
        """Looks at the pool, and asks for a lease if that is due."""
        if version != self.version:
            return
        now, lease = self.clock(), self.lease
        if min(self.fleet.most, lease.limit(now)) != self.limit:
            self.update()
        else:
            self.demands.note(now, self._wanted())
        has, wants = self.has(now), self.wants(now)
        if lease.is_due(now, has, self.limit, wants) and not self._is_waiting(now):
            self._ask(now, has, wants)
            if lease.is_in_contact(now) and self.is_settled(now):
                self.tick_at(self.sends(1))
                return
        following, renewal = self.fleet.now + self._until_next(now, has, wants) / self.rate, self.sends(1)
        self.tick_at(renewal if self.fleet.now < renewal < following else following)

    def tick_at(self, moment: float) -> None:
        """Looks at the pool next at a moment."""
        self.next_tick = moment
        self.version += 1
        self.fleet.at(moment, self.tick, self, self.version)

    def _is_waiting(self, now: float) -> bool:
        """True while its thread waits for a reply."""
        return self.is_asking and now - self.lease.asked < TIMEOUT

    def _until_next(self, now: float, has: int, wants: int) -> float:
        """Seconds on its clock until a tick may change something, if nothing happens before.

        A process looks at its pool in every tick. This leaves out those between its changes in which nothing
        can be due.
        """
        lease = self.lease
        following, past = lease.asked + RENEWAL, now - TICK
        moments: list[float] = []
        if lease.renewed + CONTACT < following:
            moments += lease.renewed + CONTACT, lease.renewed + GROW_AFTER
        if lease.is_early(now, has, self.limit, wants):
            moments += lease.asked + QUICKEST, lease.asked + TIMEOUT
        if has > self.busy + self.idle:
            moments.append(max(lease.asked + QUICKEST, now))  # each tick: they were closed one by one
        for moment in moments:
            if past < moment < following:
                following = moment
        return max(1, math.ceil((following - now) / TICK + 1e-6)) * TICK

    def is_settled(self, now: float) -> bool:
        """True if its next request will say what the last one has said."""
        last = self.last
        return (
            last is not None
            and last.safe == self.lease.safe
            and self.repeats_its_demand()
            and self._repeats(last, now, self.wants(now))
        )

    def is_predictable(self, now: float) -> bool:
        """True if its next request is known, and comes a period after the last one.

        It will say what the last one has said. Only its safe share is that of the last reply, and its demand
        the largest of the last seconds.
        """
        last, wants = self.last, self.wants(now)
        return last is not None and self.next_tick >= self.sends(1) and self._repeats(last, now, wants)

    def _repeats(self, last: Request, now: float, wants: int) -> bool:
        has, lease = self.busy + self.idle, self.lease
        return (
            wants <= last.wants
            and last.has == has
            and last.cap == max(has, self.limit)
            and lease.below_since is None  # else it asks more often
            and not (self.ending or self.cut_off or last.fresh)
            and self.has(now) == has
            and lease.is_in_contact(now)
        )

    def repeats_its_demand(self) -> bool:
        """True if its next request names the demand of the last one; it is predictable."""
        return self.last is not None and self.last.wants == demand(self._wanted(), self.fleet.most)

    def next_request(self, last: Request, number: int) -> Request:
        """The request with a number, which comes after the last one; it is predictable."""
        moment, lease = self.base + number * self.period, self.lease
        self.note(moment)
        lease.told_wants = wants = self.wants(self.reading(moment))
        self.last = last._replace(seq=self.seq + number - self.beats, safe=lease.safe, wants=wants)
        return self.last

    def _to_tick(self) -> float:
        passed = math.fmod(self.clock(), TICK)
        return (TICK - passed) / self.rate

    def has(self, now: float) -> int:
        """Connections to report as open."""
        return max(self.had.most(now), self.busy + self.idle)

    def wants(self, now: float) -> int:
        """Connections to ask for."""
        return demand(self.demands.most(now), self.fleet.most)

    def request(self, has: int) -> Request:
        """The next request; call ``lease.ask`` before."""
        lease, fleet = self.lease, self.fleet
        self.seq += 1
        return Request(
            self.name, self.instance, self.seq, lease.grant is None, has, lease.told_cap,
            lease.safe, lease.told_wants, fleet.minimum, fleet.most, fleet.budget,
        )  # fmt: skip

    def _ask(self, now: float, has: int, wants: int) -> None:
        self.lease.ask(now, has, self.limit, wants)
        request = self.request(has)
        if self.fleet.now == self.sends(1):
            self.beats += 1
        else:
            self.base, self.beats = self.fleet.now, 0
        self.last, self.moment_sent, self.is_asking = request, self.fleet.now, True
        self.fleet.send(self, request, now)

    def start(self) -> None:
        """Asks for the first lease."""
        now = self.clock()
        self._ask(now, 0, self.wants(now))
        self.tick_at(self.fleet.now + self._to_tick())
        self.fleet.after(FIRST_WAIT / self.rate, self.first_wait_over, self)

    def first_wait_over(self) -> None:
        """Without an answer a new worker takes its floor."""
        if self.lease.grant is None:
            self.fleet.allow(self.fleet.minimum)
        self.update()

    def answered(self, sent: float, reply: Reply) -> None:
        """Takes a reply, if it comes in time."""
        lease = self.lease
        if lease.asked != sent or self.clock() - sent > TIMEOUT:
            return  # its connection was closed when the time was over
        self.is_asking = False
        if reply.status == GRANTED and reply.borrowed:
            self.fleet.allow(reply.borrowed)
        before = self.limit
        self.note(self.fleet.now)
        lease.renew(sent, reply)
        self.reply = reply
        self.update()
        if self.limit != before:
            self.disturb()
        else:
            self.fleet.try_to_rest(self, reply)
