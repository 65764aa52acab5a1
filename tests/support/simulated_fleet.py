"""A fleet in virtual time: many workers, one store, a network that loses messages, by seed.

The store runs the real rule, and each worker the real `WorkerLease`. Calls are durations. A connection is
opened when a call finds none idle, and closed as the pool's upkeep does it.
"""

from __future__ import annotations

import heapq
import itertools
import random

from guardrails.fleet._lease import LeaseTable
from guardrails.fleet._records import GRANTED, Request
from guardrails.fleet._worker_lease import WorkerLease

TIMEOUT = 0.5
RENEWAL = 1.0
TICK = 0.1
QUICKEST = 0.25


class Worker:
    """One process with one pool.

    Attributes:
        demand: Calls that it would run at once.
        allowance: Connections that it may have above the budget, and until when.
    """

    def __init__(self, fleet, name, *, demand=0, minimum=1, most=100, hold=0.5):
        self.fleet, self.name, self.demand, self.minimum, self.most = fleet, name, demand, minimum, most
        self.hold = hold
        self.instance = f"{fleet.random.getrandbits(32):x}"
        drift = fleet.drift
        self.rate, self.offset = 1 + fleet.random.uniform(-drift, drift), fleet.random.uniform(0, 1000)
        self.worker_lease = WorkerLease(minimum, self.clock())
        self.busy = self.idle = self.seq = 0
        self.alive = self.running = True
        self.cut_off = False
        self.asked = -1e9
        self.waiting_for = None
        self.told = (0, 0)
        self.allowance = (0, 0.0)
        self.frozen = []

    def clock(self):
        """The worker's own monotonic clock."""
        return self.offset + self.fleet.now * self.rate

    @property
    def open(self):
        return self.busy + self.idle

    @property
    def limit(self):
        return min(self.most, self.worker_lease.limit(self.clock()))

    def fit(self):
        """Applies the limit: idle connections go first."""
        self.idle -= min(self.idle, max(0, self.open - self.limit))

    def work(self):
        """Starts the calls that the limit allows, and opens connections for them."""
        self.fit()
        if self.worker_lease.grant is None and self.limit:  # it had no answer in time, and takes its floor
            self.allowance = (self.minimum, self.fleet.now + 20)
        while self.busy < min(self.demand, self.limit):
            self.idle -= self.idle > 0
            self.busy += 1
            self.fleet.after(self.fleet.random.uniform(0.01, 2) * self.hold, self.call_ended, self)

    def call_ended(self):
        self.busy -= 1
        self.idle += 1
        self.work()

    def tick(self):
        self.work()
        now = self.clock()
        shrunk = self.open < self.told[0] and self.limit < self.told[0]
        short = self.wants > max(self.told[1], self.limit)
        early = (
            shrunk
            or short
            or (self.worker_lease.grant is not None and self.worker_lease.grant < self.minimum)
        )
        if now - self.asked >= RENEWAL or (early and now - self.asked >= QUICKEST):
            self.ask()
        self.fleet.after(TICK / self.rate, self.tick, self)

    @property
    def wants(self):
        return min(self.most, self.demand + max(1, self.demand // 4))

    def request(self):
        cap = self.worker_lease.cap(self.clock(), self.open)
        self.told = (cap, self.wants)
        fresh = self.worker_lease.grant is None
        self.seq += 1
        return Request(
            self.name, self.instance, self.seq, fresh, self.open, cap, self.worker_lease.safe, self.wants,
            self.minimum, self.most, self.fleet.budget,
        )  # fmt: skip

    def ask(self):
        self.asked = self.clock()
        request = self.request()
        self.fleet.send(self, request, self.asked)

    def answered(self, sent, reply):
        """Takes a reply that came in time."""
        if self.asked != sent or self.clock() - sent > TIMEOUT:
            return  # its connection was closed when the time was over
        if reply.status == GRANTED and reply.borrowed:
            self.allowance = (self.minimum, self.fleet.now + 20)
        self.worker_lease.renew(sent, reply)
        self.work()


class Fleet:
    """The workers, the store and the network.

    Args:
        seed: Of everything that is random.
        budget: Connections.
        drift: The largest error of a worker's clock.
        loss: Probability with which a message is lost.
    """

    def __init__(self, seed, budget=40, *, drift=0.05, loss=0.0):
        self.random = random.Random(seed)
        self.budget, self.drift, self.loss = budget, drift, loss
        self.now = 100_000.0
        self.store_jump = 0.0
        self.frozen_until = 0.0
        self.leases = LeaseTable()
        self.workers = []
        self.highest = 0
        self._events, self._numbers = [], itertools.count()
        self._names = itertools.count()

    def after(self, seconds, what, worker=None, *args):
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), what, worker, args))

    def join(self, **options):
        worker = Worker(self, f"w{next(self._names):03}", **options)
        self.workers.append(worker)
        worker.ask()
        self.after(self.random.uniform(0, TICK), worker.tick, worker)
        return worker

    def kill(self, worker):
        worker.alive = False
        worker.busy = worker.idle = 0
        self.workers.remove(worker)

    def leave_orderly(self, worker):
        worker.idle = worker.busy = 0  # a service drains its calls before
        self.leases.leave(worker.request(), self.store_time())
        self.kill(worker)

    def stop(self, worker):
        worker.running = False

    def go_on(self, worker):
        worker.running = True
        events, worker.frozen = worker.frozen, []
        for what, args in events:
            self.after(0, what, worker, *args)
        worker.fit()

    def store_time(self):
        return int((self.now + self.store_jump) * 1000)

    def send(self, worker, request, sent):
        lost, late = self.random.random() < self.loss, self.random.random() < self.loss
        delay = self.random.uniform(0.0005, 0.02) if not late else self.random.uniform(0.3, 3)
        if not (lost or worker.cut_off):
            self.after(delay, self.receive, None, worker, request, sent)

    def receive(self, worker, request, sent):
        if self.now < self.frozen_until:
            self.after(self.frozen_until - self.now, self.receive, None, worker, request, sent)
            return
        reply = self.leases.renew(request, self.store_time())
        if self.random.random() < self.loss or worker.cut_off:
            return
        self.after(self.random.uniform(0.0005, 0.02), worker.answered, worker, sent, reply)

    def run(self, seconds):
        """Runs for so long, and checks the invariant at every event."""
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            at, _, what, worker, args = heapq.heappop(self._events)
            self.now = max(self.now, at)
            if worker is not None and not worker.alive:
                continue
            if worker is not None and not worker.running:
                worker.frozen.append((what, args))
                continue
            what(*args)
            self.check()
        self.now = until

    @property
    def open(self):
        return sum(worker.open for worker in self.workers)

    def allowed(self):
        """The budget, and what the protocol's exceptions allow beyond it."""
        extra = sum(many for many, until in (each.allowance for each in self.workers) if self.now < until)
        return self.budget + extra

    def check(self):
        self.highest = max(self.highest, self.open)
        assert self.open <= self.allowed(), f"{self.open} open at {self.now:.3f}: {self.table()}"

    def table(self):
        return [
            (each.name, each.open, each.limit, each.worker_lease.grant, each.worker_lease.safe, each.demand)
            for each in self.workers
        ]
