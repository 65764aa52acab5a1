"""Slots and the queue for them."""

from __future__ import annotations

import pytest

from guardrails._core.bulkhead import CODEL_INTERVAL, CODEL_TARGET, Bulkhead, Waiter
from support.shell import take


def queue(bulkhead, count, now=0.0):
    places = [Waiter() for _ in range(count)]
    assert all(bulkhead.try_queue(waiter, now) for waiter in places)
    return places


def full(limit, max_waiting):
    bulkhead = Bulkhead(limit, max_waiting)
    for _ in range(limit):
        assert take(bulkhead)
    assert not take(bulkhead)
    return bulkhead


def test_r19_permits_and_refuses():
    """R19: max 2; acquire x3, release x2, acquire."""
    bulkhead = Bulkhead(2, 0)
    free = lambda: bulkhead.limit - bulkhead.taken
    seen = [(take(bulkhead), free()) for _ in range(3)]
    assert seen == [(True, 1), (True, 0), (False, 0)]
    assert (bulkhead.leave(), free()) == (None, 1)
    assert (bulkhead.leave(), free()) == (None, 2)
    assert (take(bulkhead), free()) == (True, 1)


def test_first_come_first_served():
    """A slot goes directly to the caller that has waited longest and is never free in between."""
    bulkhead = full(1, 3)
    first, second, third = queue(bulkhead, 3)
    assert bulkhead.leave() is first
    assert (first.verdict, second.verdict, bulkhead.taken) == ("granted", None, 1)
    assert [bulkhead.leave(), bulkhead.leave(), bulkhead.leave()] == [second, third, None]
    assert bulkhead.taken == 0


def test_a_newcomer_never_overtakes_the_queue():
    """Not even while a slot is free: it belongs to the first waiter."""
    bulkhead = Bulkhead(2, 2)
    take(bulkhead)
    queue(bulkhead, 1)
    assert not take(bulkhead)


def test_the_queue_is_bounded():
    """One more than ``max_waiting`` is refused; with 0 no caller waits."""
    bulkhead = full(1, 2)
    queue(bulkhead, 2)
    assert not bulkhead.try_queue(Waiter(), 0)
    assert not full(1, 0).try_queue(Waiter(), 0)


def test_a_waiter_that_withdraws_leaves_no_gap():
    """The next waiter gets the slot; a waiter with a verdict cannot withdraw."""
    bulkhead = full(1, 3)
    first, second, _ = queue(bulkhead, 3)
    assert bulkhead.withdraw(first)
    assert bulkhead.leave() is second
    assert not bulkhead.withdraw(second)
    (sent,) = bulkhead.dismiss()
    assert sent.verdict == "dismissed"
    assert not bulkhead.withdraw(sent)
    assert bulkhead.taken == 1


def test_growing_grants_as_many_as_fit():
    """In the order of the queue; the others wait on."""
    bulkhead = full(1, 5)
    places = queue(bulkhead, 4)
    assert bulkhead.resize(3) == places[:2]
    assert (bulkhead.taken, len(bulkhead.queue)) == (3, 2)
    assert bulkhead.resize(3) == []


def test_shrinking_takes_no_slot_from_a_call():
    """Calls inside continue; slots beyond the new limit vanish when they are freed."""
    bulkhead = full(3, 2)
    (first, _) = queue(bulkhead, 2)
    assert bulkhead.resize(1) == []
    assert (bulkhead.leave(), bulkhead.taken) == (None, 2)
    assert (bulkhead.leave(), bulkhead.taken) == (None, 1)
    assert (bulkhead.leave(), bulkhead.taken) == (first, 1)


@pytest.mark.parametrize(
    ("asked_at", "patience"),
    [
        (0, 1.0),
        (CODEL_INTERVAL - 0.001, 1.0),
        (CODEL_INTERVAL, CODEL_TARGET),
        (CODEL_INTERVAL + 5, CODEL_TARGET),
    ],
)
def test_a_standing_queue_waits_less(asked_at, patience):
    """A queue that has stood for CODEL_INTERVAL is overload: new callers wait at most CODEL_TARGET."""
    bulkhead = full(1, 5)
    queue(bulkhead, 1, now=0)
    assert bulkhead.wait_limit(1.0, asked_at) == patience
    assert bulkhead.wait_limit(0.001, asked_at) == 0.001


def test_an_empty_queue_restores_the_full_wait():
    """However the last waiter has left."""
    for empty in (Bulkhead.leave, Bulkhead.dismiss, lambda b: b.withdraw(next(iter(b.queue)))):
        bulkhead = full(1, 5)
        queue(bulkhead, 1, now=0)
        empty(bulkhead)
        assert bulkhead.wait_limit(1.0, 99) == 1.0
        queue(bulkhead, 1, now=99)
        assert bulkhead.wait_limit(1.0, 99) == 1.0


def test_a_standing_queue_admits_twice_the_callers_that_it_serves_in_time():
    """And always the first."""
    bulkhead, began = full(5, 10), 7
    queue(bulkhead, 10, now=began)
    for _ in range(10):
        bulkhead.leave()
        queue(bulkhead, 1, now=began + CODEL_INTERVAL / 2)
    assert bulkhead.served == 10
    assert bulkhead.max_queue_length(began + CODEL_INTERVAL - 0.001) == 10
    hopeful = 10 * CODEL_TARGET / 0.5
    assert bulkhead.max_queue_length(began + 0.5) == pytest.approx(1 + 2 * hopeful)
    assert bulkhead.max_queue_length(began + 5) == pytest.approx(1 + 2 * hopeful / 10)
    assert not bulkhead.try_queue(Waiter(), began + 0.5)


def test_a_fast_standing_queue_may_be_as_long_as_max_waiting():
    """With ``max_waiting=0`` it stays empty."""
    bulkhead = full(5, 3)
    queue(bulkhead, 3, now=0)
    for _ in range(1000):
        bulkhead.leave()
        queue(bulkhead, 1, now=CODEL_INTERVAL / 2)
    assert bulkhead.max_queue_length(CODEL_INTERVAL) == 3
    assert full(5, 0).max_queue_length(CODEL_INTERVAL) == 0


def test_only_the_first_caller_waits_while_no_slot_is_released():
    """All slots hang: only one caller may wait."""
    bulkhead = full(5, 5)
    queue(bulkhead, 1, now=0)
    assert not bulkhead.try_queue(Waiter(), CODEL_INTERVAL)
    bulkhead.withdraw(next(iter(bulkhead.queue)))
    assert bulkhead.max_queue_length(99) == 5
    queue(bulkhead, 5, now=99)


def test_the_pace_of_a_queue_is_its_own():
    """Slots that an earlier queue got do not count; those of a larger limit do."""
    bulkhead = full(1, 3)
    queue(bulkhead, 1, now=0)
    bulkhead.leave()
    queue(bulkhead, 2, now=1)
    assert bulkhead.served == 0
    bulkhead.resize(2)
    assert bulkhead.served == 1


def test_a_waiter_is_dismissed_unless_its_workload_may_stay():
    bulkhead = Bulkhead(0, 3)
    waiters = [Waiter() for _ in range(3)]
    for waiter, workload in zip(waiters, ("healthy", "failing", None), strict=True):
        waiter.workload = workload
        bulkhead.try_queue(waiter, 0)
    assert bulkhead.dismiss(lambda workload: workload == "healthy") == waiters[1:]
    assert list(bulkhead.queue) == waiters[:1]
    assert [waiter.verdict for waiter in waiters] == [None, "dismissed", "dismissed"]


def test_each_drop_of_all_slots_begins_another_epoch():
    """So that a waiter of any of them has no slot of a later one."""
    bulkhead, epochs = Bulkhead(0, 3), set()
    for _ in range(3):
        waiter = Waiter()
        bulkhead.try_queue(waiter, 0)
        epochs.add(waiter.epoch)
        bulkhead.drop_all()
    assert len(epochs) == 3
