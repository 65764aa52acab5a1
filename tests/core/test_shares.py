"""Limits of the parts of a bulkhead: all slots for the only active part, a share for one of several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guardrails._core.bulkhead import Bulkhead
from guardrails._core.shares import ACTIVE, FRESH, QUICK, Shares, share
from guardrails._core.window import NEVER, CountWindow
from guardrails._core.workloads import Workload
from support.shell import take

NAMES = ("orders", "items", "reports")


@pytest.mark.parametrize(("total", "expected"), [(1, 1), (2, 1), (3, 2), (10, 7), (15, 10), (100, 70)])
def test_a_share_is_seven_tenths(total, expected):
    """Rounded down, and at least one."""
    assert share(total) == expected


def ask(shares, now, part):
    """Asks for a slot as a gate does, which does nothing more if no limit changes."""
    part.last_request, part.fitted_at = now, NEVER
    if shares.keeps_limits(part, now):
        return ()
    changed = shares.note_request(now, part)
    for one in changed:
        one.bulkhead.resize(shares.limit(one, now))
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
    shares = Shares(Bulkhead(10, 0))
    parts = {name: shares.join(Bulkhead(7, 0)) for name in NAMES}
    for now, name in asks:
        ask(shares, now, parts[name])
    part = parts[name]
    while take(part.bulkhead):
        ask(shares, now, part)
    assert part.bulkhead.taken == most


def test_the_only_part_is_limited_before_another_gets_a_slot():
    """By the request of the other part; it keeps the slots that it holds."""
    shares = Shares(Bulkhead(10, 0))
    orders, items = (shares.join(Bulkhead(7, 0)) for _ in range(2))
    assert ask(shares, 0, full(orders)) == (orders,)
    assert orders.bulkhead.limit == 10
    assert ask(shares, 1, items) == (orders, items)
    assert (orders.bulkhead.limit, items.bulkhead.limit) == (7, 7)
    assert orders.bulkhead.taken == 7


def test_a_request_within_the_limit_changes_nothing():
    """For one of several parts with slots left, and for the only one within its share."""
    shares = Shares(Bulkhead(10, 0))
    orders, items = (shares.join(Bulkhead(7, 0)) for _ in range(2))
    for part in (orders, items, orders):
        part.last_request = 0
        assert shares.keeps_limits(part, 0)
    ask(shares, 2 * ACTIVE, full(orders))
    orders.bulkhead.taken = 6
    assert shares.keeps_limits(orders, 0)
    orders.bulkhead.taken = 7
    assert not shares.keeps_limits(orders, 0)
    assert not shares.keeps_limits(items, 0)


@pytest.mark.parametrize(
    ("oldest", "most"), [(None, 10), (0.0, 10), (QUICK - 0.01, 10), (QUICK, 7), (5.0, 7)]
)
def test_slots_beyond_the_share_are_for_quick_calls(oldest, most):
    """A call that waits for a lock would keep its slot when another part asks."""
    shares = Shares(Bulkhead(10, 0))
    part = shares.join(Bulkhead(7, 0))
    shares.note_request(0, part)
    assert shares.limit(part, 0, oldest) == most


@given(held=st.booleans())
def test_a_part_with_a_call_or_a_waiter_is_active(held):
    """For as long as it has one."""
    shares = Shares(Bulkhead(10, 0))
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


# --- several parts whose calls hang --------------------------------------------------------------


def hang(shares, pool, now, parts, most=99):
    """Fills each of these parts, one slot at a time in turn, with calls that never end."""
    for _ in range(most):
        for part in parts:
            part.last_request = now
            part.fitted_at = NEVER
            if not shares.keeps_limits(part, now):
                shares.note_request(now, part)
                age = 0.05 if part.bulkhead.taken else None
                part.bulkhead.resize(shares.limit(part, now, age))
            if take(part.bulkhead) and not take(pool):
                part.bulkhead.leave()


def failing(calls):
    """The record of a workload whose last calls were bad."""
    record = Workload(None, CountWindow(10))
    for _ in range(calls):
        record.note_bad_call(0)
    return record


def active_parts(total, count):
    """A pool, its shares, and so many parts that work and asked for a slot at 0."""
    pool = Bulkhead(total, 0)
    shares = Shares(pool)
    parts = [shares.join(Bulkhead(share(total), 0), failing(0)) for _ in range(count)]
    for part in parts:
        ask(shares, 0, part)
    return pool, shares, parts


@pytest.mark.parametrize(
    ("total", "others", "left"),
    [
        (15, 1, 5),  # one share, as ever
        (15, 2, 1),
        (15, 3, 1),
        (10, 2, 1),
        (20, 1, 6),
        (20, 2, 1),
        (40, 4, 1),
    ],
)
def test_parts_whose_calls_do_not_return_leave_a_slot_for_a_part_without_one(total, others, left):
    """Also in the first second, in which nobody knows that they hang."""
    pool = Bulkhead(total, 0)
    shares = Shares(pool)
    works, *busy = (shares.join(Bulkhead(share(total), 0), failing(0)) for _ in range(1 + others))
    ask(shares, 0, works)
    hang(shares, pool, 1, busy)
    assert total - pool.taken == left


@given(total=st.integers(3, 60), hanging=st.integers(1, 12), working=st.integers(1, 12), order=st.randoms())
def test_parts_that_hang_leave_a_slot_for_each_that_works(total, hanging, working, order):
    """However many hang, as long as no more work than slots are beyond one share."""
    pool = Bulkhead(total, 0)
    shares = Shares(pool)
    hangs = [shares.join(Bulkhead(share(total), 0), failing(2)) for _ in range(hanging)]
    works = [shares.join(Bulkhead(share(total), 0), failing(0)) for _ in range(working)]
    for part in [*hangs, *works]:
        ask(shares, 0, part)
    hangs[0].bulkhead.taken = pool.taken = 1
    for _ in range(40):
        hang(shares, pool, 1, [order.choice(hangs)], most=order.randint(1, 9))
    hang(shares, pool, 1, hangs)
    spare = total - share(total)
    assert pool.taken >= total - spare
    for part in works[:spare]:
        ask(shares, 2, part)
        assert take(part.bulkhead)
        assert take(pool)


def test_a_part_whose_last_two_calls_were_bad_has_no_claim():
    """It leaves what is kept for the others, and nothing is kept for it; one bad call is no proof."""
    pool = Bulkhead(10, 0)
    shares = Shares(pool)
    hangs, once, works = (shares.join(Bulkhead(7, 0), failing(times)) for times in (2, 1, 0))
    for part in (hangs, once, works):
        ask(shares, 0, part)
    pool.taken = 9
    assert [part.works for part in (hangs, once, works)] == [False, True, True]
    assert shares.limit(hangs, 0) == 1, "it may try, as no other one hangs"
    other = shares.join(Bulkhead(7, 0), failing(2))
    other.bulkhead.taken = 1
    assert shares.limit(hangs, 0) == 0, "two may claim one each, and one is free"
    assert shares.limit(once, 0, 0.1) == shares.limit(works, 0, 0.1) == 1
    hangs.workload.note_success(0, slow=False)
    assert shares.limit(hangs, 0, 0.1) == share(10), "its calls return again"
    hangs.workload.note_bad_call(0)
    hangs.workload.note_bad_call(0)
    once.workload.note_bad_call(0)
    works.bulkhead.taken = 1
    assert shares.limit(hangs, 0) == 1, "nobody else has a claim to the one that is free"


def test_parts_use_every_slot_when_each_active_one_has_its_own():
    """What is kept for a part that has taken it is kept no more."""
    pool, shares, parts = active_parts(15, 3)
    hang(shares, pool, 1, parts)
    assert pool.taken == 15


def test_a_part_that_must_leave_slots_gets_them_when_they_are_free_again():
    """Its limit is its share again by its next request."""
    pool, shares, parts = active_parts(10, 3)
    hang(shares, pool, 1, parts[:2])
    assert parts[1].is_cut
    for part in parts[:2]:
        while part.bulkhead.taken:
            part.bulkhead.leave()
            pool.leave()
    ask(shares, 2, parts[1])
    assert parts[1].bulkhead.limit == share(10)
    assert not parts[1].is_cut
    assert shares.keeps_limits(parts[1], 0)


def test_a_limit_that_was_cut_is_computed_again_after_a_moment():
    """Not with each of the requests of a flood; at once where the clock has gone back."""
    pool, shares, parts = active_parts(10, 3)
    hang(shares, pool, 1, parts[:2])
    cut = parts[1]
    assert (cut.is_cut, cut.fitted_at) == (True, 1)
    moments = (1, 1 + FRESH / 2, 1 + FRESH, 0.5)
    assert [shares.keeps_limits(cut, now) for now in moments] == [True, True, False, False]
    cut.fitted_at = 0
    assert not shares.keeps_limits(cut, FRESH), "1 + FRESH is a little more than FRESH later"


@pytest.mark.parametrize(("succeeded_at", "most"), [(1.0, 4), (1.5, 7), (1.9, 7)])
def test_slots_are_kept_from_a_part_whose_calls_do_not_return(succeeded_at, most):
    """None has succeeded since the oldest of those under way began: it may be the first of a locked table."""
    pool = Bulkhead(10, 0)
    shares = Shares(pool)
    part, busy, *quiet = (shares.join(Bulkhead(7, 0), failing(0)) for _ in range(5))
    for each in (busy, *quiet, part):
        shares.note_request(1.0, each)
    part.workload.note_success(succeeded_at, slow=False)
    part.bulkhead.taken = busy.bulkhead.taken = 4
    pool.taken = 8
    assert shares.limit(part, 2.0, 0.5) == most


def pool_with_calls_outside(outside, held):
    """A pool of 20 slots with a share of 14, calls outside all parts, and parts that hold so many slots.

    No call of the first part has succeeded; those of the others return. All have asked at 0.
    """
    pool = Bulkhead(20, 0)
    shares = Shares(pool)
    parts = [shares.join(Bulkhead(14, 0), failing(0)) for _ in held]
    for part, taken in zip(parts, held, strict=True):
        part.bulkhead.taken = taken
        shares.note_request(0, part)
    pool.taken = outside + sum(held)
    return shares, parts


@pytest.mark.parametrize(
    ("outside", "held", "most"),
    [
        (10, [4, 0], 7),  # 6 are free; the other one has a claim to the 3 that are kept
        (10, [4, 2], 7),  # 4 are free, and it has 2 of its 3
        (10, [4, 0, 0], 8),  # 6 are free, and each of two has a claim to 1
        (10, [4, 0, 0, 0, 0], 7),  # each of four has a claim to 1, and 3 are kept
        (0, [4, 0], 14),  # 16 are free, more than a share needs
        (3, [4, 0], 14),  # 13 are free: enough for the claim and a share
        (4, [4, 0], 13),
    ],
)
def test_each_other_part_has_a_claim_to_an_equal_number_of_the_slots_that_are_kept(outside, held, most):
    """Half of the six slots beyond one share are kept while no part is known to hang."""
    shares, parts = pool_with_calls_outside(outside, held)
    limit = shares.limit(parts[0], 1, 0.5)
    assert (limit, type(limit), parts[0].is_cut) == (most, int, most < 14)


@pytest.mark.parametrize(
    ("hanging", "most"),
    [
        ([], 9),  # each of the two others has a claim to one of three, and one of them has it
        ([0], 5),  # each of the two has a claim to three of six, and one of them has one
        ([1], 7),  # the one that works has a claim to three of six
        ([0, 1], 7),
    ],
)
def test_all_slots_beyond_one_share_are_kept_while_a_part_hangs(hanging, most):
    """Be it the part itself or another one."""
    shares, parts = pool_with_calls_outside(9, [4, 1, 0])
    for number in hanging:
        parts[number].workload.note_bad_call(0)
        parts[number].workload.note_bad_call(0)
    assert shares.limit(parts[0], 1, 0.5) == most


def test_an_odd_number_of_slots_is_halved_in_favour_of_the_others():
    """Three of five."""
    pool = Bulkhead(15, 0)
    shares = Shares(pool)
    parts = [shares.join(Bulkhead(10, 0), failing(0)) for _ in range(5)]
    for part in parts:
        shares.note_request(0, part)
    parts[0].bulkhead.taken, pool.taken = 4, 9
    limit = shares.limit(parts[0], 1, 0.5)
    assert (limit, type(limit)) == (7, int)


def test_no_slot_is_kept_for_a_part_that_is_not_active():
    """Its last request is a minute ago, and it has no call."""
    shares, (part, *_) = pool_with_calls_outside(10, [4, 0, 0])
    part.last_request = ACTIVE
    assert shares.limit(part, ACTIVE, 0.5) == 10


def test_calls_that_move_to_a_part_of_their_own_count_as_its_calls():
    """They hold slots of the whole only until they end."""
    shares, (part, other) = pool_with_calls_outside(10, [4, 0])
    shares.moving = other
    assert shares.limit(part, 1, 0.5) == 10, "the other one has more than its claim"
    shares.moving = part
    assert shares.limit(part, 1, 0.5) == 14, "it holds 14 of the 17 that it may use"


def test_a_part_does_not_take_itself_for_another_active_one():
    """It was the other one in the last request, and is the only active one now."""
    shares = Shares(Bulkhead(10, 0))
    orders, items = (shares.join(Bulkhead(7, 0)) for _ in range(2))
    shares.note_request(0, orders)
    shares.note_request(1, items)
    assert shares.alone is None
    assert shares.note_request(1 + ACTIVE, orders) == (orders,)
    assert shares.alone is orders


class SharedPool(RuleBasedStateMachine):
    """Three workloads at one pool, compared with a record of the requests and of the slots held."""

    @initialize(total=st.integers(1, 20))
    def start(self, total):
        self.now = 0
        self.pool = Bulkhead(total, 0)
        self.shares = Shares(self.pool)
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
            others_active = self.active() - {name}
            part = self.parts[name]
            slots = part.bulkhead
            before, others = slots.taken, sum(other.bulkhead.taken for other in self.parts.values())
            ask(self.shares, self.now, part)
            if take(slots) and not take(self.pool):
                slots.leave()
            allowed = share(self.pool.limit) if others_active else self.pool.limit
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
            part.bulkhead.resize(self.shares.limit(part, self.now))

    @invariant()
    def at_most_one_has_more_than_its_share(self):
        if hasattr(self, "parts"):
            generous = [part for part in self.parts.values() if part.bulkhead.limit > share(self.pool.limit)]
            assert generous in ([], [self.shares.alone])
            assert sum(part.bulkhead.taken for part in self.parts.values()) == self.pool.taken


TestSharedPool = SharedPool.TestCase
