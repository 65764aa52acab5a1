"""Limits of the parts of a bulkhead: all slots for the only active part, a share for one of several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guardrails._core.bulkhead import Bulkhead
from guardrails._core.shares import ACTIVE, QUICK, Shares, share
from support.shell import take

NAMES = ("orders", "items", "reports")


@pytest.mark.parametrize(("total", "expected"), [(1, 1), (2, 1), (3, 2), (10, 7), (15, 10), (100, 70)])
def test_a_share_is_seven_tenths(total, expected):
    """Rounded down, and at least one."""
    assert share(total) == expected


def ask(shares, now, part):
    """Asks for a slot as a gate does, which does nothing more if no limit changes."""
    part.last_request = now
    if shares.keeps_limits(part):
        return ()
    changed = shares.note_request(now, part)
    for one in changed:
        one.bulkhead.resize(shares.limit(one))
    return changed


def full(part):
    """Fills a part up to its limit, so that its next request may change it."""
    part.bulkhead.taken = part.bulkhead.limit
    return part


@pytest.mark.parametrize(
    ("asks", "most"),
    [
        ([(0, "orders")], 10),
        ([(0, "items"), (0, "orders")], 7),
        ([(0, "items"), (ACTIVE - 1, "orders")], 7),
        ([(0, "items"), (ACTIVE, "orders")], 10),
        ([(0, "orders"), (0, "items"), (ACTIVE, "orders")], 10),
        ([(0, "orders"), (1, "items"), (ACTIVE, "orders")], 7),
        ([(0, "orders"), (0, "items"), (0, "reports"), (ACTIVE, "orders")], 10),
        ([(0, "items"), (5, "items"), (ACTIVE, "orders")], 7),
    ],
)
def test_a_part_gets_every_slot_while_no_other_is_active(asks, most):
    """A part is active for `ACTIVE` seconds after its last request."""
    shares = Shares(10)
    parts = {name: shares.join(Bulkhead(7, 0)) for name in NAMES}
    for now, name in asks:
        ask(shares, now, parts[name])
    part = parts[name]
    while take(part.bulkhead):
        ask(shares, now, part)
    assert part.bulkhead.taken == most


def test_the_only_part_is_limited_before_another_gets_a_slot():
    """By the request of the other part; it keeps the slots that it holds."""
    shares = Shares(10)
    orders, items = (shares.join(Bulkhead(7, 0)) for _ in range(2))
    assert ask(shares, 0, full(orders)) == (orders,)
    assert orders.bulkhead.limit == 10
    assert ask(shares, 1, items) == (orders,)
    assert (orders.bulkhead.limit, items.bulkhead.limit) == (7, 7)
    assert orders.bulkhead.taken == 7


def test_a_request_within_the_limit_changes_nothing():
    """For one of several parts with slots left, and for the only one within its share."""
    shares = Shares(10)
    orders, items = (shares.join(Bulkhead(7, 0)) for _ in range(2))
    for part in (orders, items, orders):
        part.last_request = 0
        assert shares.keeps_limits(part)
    ask(shares, 2 * ACTIVE, full(orders))
    orders.bulkhead.taken = 6
    assert shares.keeps_limits(orders)
    orders.bulkhead.taken = 7
    assert not shares.keeps_limits(orders)
    assert not shares.keeps_limits(items)


@pytest.mark.parametrize(
    ("oldest", "most"), [(None, 10), (0.0, 10), (QUICK - 0.01, 10), (QUICK, 7), (5.0, 7)]
)
def test_slots_beyond_the_share_are_for_quick_calls(oldest, most):
    """A call that waits for a lock would keep its slot when another part asks."""
    shares = Shares(10)
    part = shares.join(Bulkhead(7, 0))
    shares.note_request(0, part)
    assert shares.limit(part, oldest) == most


@given(held=st.booleans())
def test_a_part_with_a_call_or_a_waiter_is_active(held):
    """For as long as it has one."""
    shares = Shares(10)
    report, orders = shares.join(Bulkhead(7, 1)), shares.join(Bulkhead(7, 1))
    ask(shares, 0, report)
    report.bulkhead.taken = int(held)
    if not held:
        report.bulkhead.queue[object()] = None
    ask(shares, 100, full(orders))
    assert orders.bulkhead.limit == 7
    report.bulkhead.taken = 0
    report.bulkhead.queue.clear()
    ask(shares, 101, full(orders))
    assert orders.bulkhead.limit == 10


class SharedPool(RuleBasedStateMachine):
    """Three workloads at one pool, compared with a record of the requests and of the slots held."""

    @initialize(total=st.integers(1, 20))
    def start(self, total):
        self.now = 0
        self.shares = Shares(total)
        self.pool = Bulkhead(total, 0)
        self.parts = {name: self.shares.join(Bulkhead(share(total), 0)) for name in NAMES}
        self.asked = {}

    def active(self):
        return {
            n
            for n, part in self.parts.items()
            if part.bulkhead.taken or self.now - self.asked.get(n, -99) < ACTIVE
        }

    @rule(seconds=st.sampled_from([0, 1, 4, 9, 10, 30]))
    def wait(self, seconds):
        self.now += seconds

    @rule(name=st.sampled_from(NAMES), times=st.integers(1, 20))
    def take(self, name, times):
        """Takes a slot for each call, if the part and the pool have one more."""
        for _ in range(times):
            self.asked[name] = self.now
            alone = self.active() == {name}
            part = self.parts[name]
            slots = part.bulkhead
            before, others = slots.taken, sum(other.bulkhead.taken for other in self.parts.values())
            ask(self.shares, self.now, part)
            if take(slots) and not take(self.pool):
                slots.leave()
            allowed = self.pool.limit if alone else share(self.pool.limit)
            assert slots.taken - before == int(others < self.pool.limit and before < allowed)

    @precondition(lambda self: self.pool.taken)
    @rule(data=st.data())
    def give_back(self, data):
        name = data.draw(st.sampled_from([name for name, part in self.parts.items() if part.bulkhead.taken]))
        self.parts[name].bulkhead.leave()
        self.pool.leave()

    @rule(total=st.integers(1, 20))
    def resize(self, total):
        self.shares.total = total
        self.pool.resize(total)
        for part in self.parts.values():
            part.bulkhead.resize(self.shares.limit(part))

    @invariant()
    def at_most_one_has_more_than_its_share(self):
        if hasattr(self, "parts"):
            generous = [part for part in self.parts.values() if part.bulkhead.limit > share(self.pool.limit)]
            assert generous in ([], [self.shares.alone])
            assert sum(part.bulkhead.taken for part in self.parts.values()) == self.pool.taken


TestSharedPool = SharedPool.TestCase
