"""How often a worker asks for its lease. Pure."""

from __future__ import annotations

from guardrails.fleet._records import GRANTED, Reply
from guardrails.fleet._worker_lease import HURRY, QUICKEST, RENEWAL, WorkerLease


def holder_with(grant, *, minimum=2):
    """A lease that has asked at 100.0 and has this grant."""
    lease = WorkerLease(minimum, 99.0)
    lease.ask(100.0, 0, 0, 1)
    lease.renew(100.0, Reply(GRANTED, grant, safe=1, workers=2, budget=8, largest=8))
    return lease


def asks_after(lease, now):
    """Seconds until it asks again, in ticks of a tenth; it has no connection and wants one."""
    limit, ticks = lease.grant or 0, 0
    while not lease.is_due(now + ticks / 10, limit, limit, 1):
        ticks += 1
    return ticks / 10


def test_a_worker_below_its_floor_asks_every_quarter_of_a_second():
    assert QUICKEST <= asks_after(holder_with(1), 100.0) <= QUICKEST + 0.1
    assert asks_after(holder_with(2), 100.0) == RENEWAL


def test_a_worker_that_stays_below_its_floor_asks_once_a_second():
    """Then the floors do not fit into the budget."""
    lease = holder_with(1)
    now, asked = 100.0, []
    while now < 100.0 + 2 * HURRY:
        now += asks_after(lease, now)
        asked.append(now)
        lease.ask(now, 1, 1, 1)
        lease.renew(now, Reply(GRANTED, 1, safe=1, workers=2, budget=8, largest=8))
    assert sum(at < 100.0 + HURRY for at in asked) >= HURRY / (QUICKEST + 0.1) - 1
    assert sum(at > 101.0 + HURRY for at in asked) <= HURRY
    lease.renew(now + 1, Reply(GRANTED, 2, safe=1, workers=2, budget=8, largest=8))
    assert lease.below_since is None
