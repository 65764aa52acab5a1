"""Opening idle connections: how many, and one at a time."""

from __future__ import annotations

import threading

import pytest

from guardrails import Guard
from guardrails._pool.idle_pool import IdlePool, run_to_end
from guardrails._pool.opener import Opener


class SlowPool(IdlePool):
    """A pool whose connections open when the test says so."""

    def __init__(self, out=0):
        self.opened = 0
        self.out = out
        self.begun = threading.Semaphore(0)
        self.may_open = threading.Semaphore(0)

    def idle(self):
        """See IdlePool."""
        return [(number, None) for number in range(self.opened)]

    def open_count(self):
        """See IdlePool."""
        return self.opened + self.out

    async def open(self):
        """See IdlePool."""
        self.begun.release()
        assert self.may_open.acquire(timeout=20)
        self.opened += 1
        return True

    take = put_back = close = ping = None


def test_a_warm_up_waits_for_an_opening_that_is_under_way_and_opens_the_others():
    """Both would count the connections before either has opened its own."""
    pool, guard = SlowPool(), Guard("db", max_concurrent_calls=5)
    opener = Opener(pool, guard, 2)
    housekeeper = threading.Thread(target=lambda: run_to_end(opener.refill()))
    housekeeper.start()
    assert pool.begun.acquire(timeout=20)
    counts = []
    caller = threading.Thread(target=lambda: counts.append(run_to_end(opener.warm_up(20))))
    caller.start()
    for _ in range(5):
        pool.may_open.release()
    for thread in (housekeeper, caller):
        thread.join(20)
    assert (pool.opened, counts) == (2, [1])
    assert guard.snapshot().in_use == 0


def test_a_warm_up_gives_up_waiting_at_its_timeout():
    pool, guard = SlowPool(), Guard("db", max_concurrent_calls=5)
    opener = Opener(pool, guard, 2)
    housekeeper = threading.Thread(target=lambda: run_to_end(opener.refill()))
    housekeeper.start()
    assert pool.begun.acquire(timeout=20)
    assert run_to_end(opener.warm_up(0.05)) == 0
    for _ in range(5):
        pool.may_open.release()
    housekeeper.join(20)
    assert pool.opened == 2


@pytest.mark.parametrize(("out", "opened"), [(0, 2), (1, 1), (2, 0)])
def test_connections_that_are_out_leave_no_room_for_more_than_the_limit(out, opened):
    """A pool never has more open than its guard has slots."""
    pool, guard = SlowPool(out), Guard("db", max_concurrent_calls=2)
    for _ in range(5):
        pool.may_open.release()
    assert run_to_end(Opener(pool, guard, 2).warm_up(20)) == opened
    assert pool.open_count() == 2
