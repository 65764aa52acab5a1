"""What each part of a bulkhead may have: all of it alone, its share among others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guardrails._core.bulkhead import Bulkhead
from guardrails._core.shares import ACTIVE, Shares, share

NAMES = ("orders", "items", "reports")


@pytest.mark.parametrize(("total", "expected"), [(1, 1), (2, 1), (3, 2), (10, 7), (15, 10), (100, 70)])
def test_a_share_is_seven_tenths(total, expected):
    """Rounded down, and at least one."""
    assert share(total) == expected


@pytest.mark.parametrize(
    ("asks", "limits"),
    [
        ([(0, "orders")], {"orders": 10}),
        ([(0, "orders"), (0, "items")], {"orders": 7, "items": 7}),
        ([(0, "orders"), (ACTIVE - 1, "items")], {"orders": 7, "items": 7}),
        ([(0, "orders"), (ACTIVE, "items")], {"orders": 7, "items": 10}),
        ([(0, "orders"), (0, "items"), (ACTIVE, "orders")], {"orders": 10, "items": 7}),
        ([(0, "orders"), (1, "items"), (ACTIVE, "orders")], {"orders": 7, "items": 7}),
        ([(0, "orders"), (0, "items"), (0, "reports")], {"orders": 7, "items": 7, "reports": 7}),
        ([(0, "orders"), (0, "items"), (5, "orders"), (ACTIVE, "orders")], {"orders": 10, "items": 7}),
    ],
)
def test_who_asked_when(asks, limits):
    """A part is active for a while after it asked; the one active part may have every slot."""
    parts = {name: Bulkhead(7, 0) for name in NAMES}
    shares = Shares(10)
    for now, name in asks:
        for changed in shares.ask(now, parts[name]):
            changed.limit = shares.limit(changed)
    assert {name: parts[name].limit for name in limits} == limits


def test_only_parts_whose_limit_is_another_are_named():
    """Others need not be touched: one that asks again is as it was."""
    shares, orders, items = Shares(10), Bulkhead(7, 0), Bulkhead(7, 0)
    assert shares.ask(0, orders) == (orders,)
    assert shares.ask(1, orders) == ()
    assert shares.ask(2, items) == (orders,)
    assert shares.ask(3, items) == ()


@given(held=st.booleans())
def test_who_holds_or_waits_is_active_for_as_long(held):
    """A long report keeps its right to a second slot, and a caller in a queue its hope, and no longer."""
    shares = Shares(10)
    report, orders = Bulkhead(7, 1), Bulkhead(7, 1)
    shares.ask(0, report)
    report.taken = int(held)
    if not held:
        report.queue[object()] = None
    shares.ask(100, orders)
    assert shares.limit(orders) == 7
    report.taken = 0
    report.queue.clear()
    shares.ask(101, orders)
    assert shares.limit(orders) == 10


class SharedPool(RuleBasedStateMachine):
    """Three workloads at one pool, and a record on paper of who asked when and who holds what."""

    @initialize(total=st.integers(1, 20))
    def start(self, total):
        self.now = 0
        self.shares = Shares(total)
        self.pool = Bulkhead(total, 0)
        self.parts = {name: Bulkhead(share(total), 0) for name in NAMES}
        self.asked = {}

    def active(self):
        return {
            n for n, part in self.parts.items() if part.taken or self.now - self.asked.get(n, -99) < ACTIVE
        }

    @rule(seconds=st.sampled_from([0, 1, 4, 9, 10, 30]))
    def wait(self, seconds):
        self.now += seconds

    @rule(name=st.sampled_from(NAMES), times=st.integers(1, 20))
    def take(self, name, times):
        """As many calls as come: each gets a slot if its part may have one more and the pool has one."""
        for _ in range(times):
            self.asked[name] = self.now
            alone = self.active() == {name}
            part = self.parts[name]
            before = part.taken
            for changed in self.shares.ask(self.now, part):
                changed.limit = self.shares.limit(changed)
            if part.try_enter() and not self.pool.try_enter():
                part.leave()
            allowed = self.pool.limit if alone else share(self.pool.limit)
            free = sum(other.taken for other in self.parts.values()) - part.taken + before < self.pool.limit
            assert part.taken - before == int(free and before < allowed)

    @precondition(lambda self: self.pool.taken)
    @rule(data=st.data())
    def give_back(self, data):
        name = data.draw(st.sampled_from([name for name, part in self.parts.items() if part.taken]))
        self.parts[name].leave()
        self.pool.leave()

    @rule(total=st.integers(1, 20))
    def resize(self, total):
        self.shares.total = total
        self.pool.resize(total)
        for part in self.parts.values():
            part.resize(self.shares.limit(part))

    @invariant()
    def at_most_one_has_more_than_its_share(self):
        if hasattr(self, "parts"):
            generous = [part for part in self.parts.values() if part.limit > share(self.pool.limit)]
            assert generous in ([], [self.shares.alone])
            assert sum(part.taken for part in self.parts.values()) == self.pool.taken


TestSharedPool = SharedPool.TestCase
