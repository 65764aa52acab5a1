"""Calls of several ranks: which get a slot, in which order they wait, which are shed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker
from guardrails._core.bulkhead import CODEL_INTERVAL, CODEL_TARGET, Bulkhead, Waiter
from guardrails._core.criticality import CLASSES, CRITICAL
from guardrails._core.gate import Gate, Refusal
from guardrails._core.outcome import Outcome
from guardrails._core.priority_shares import ACTIVE

SHEDDABLE, SHEDDABLE_PLUS, _, CRITICAL_PLUS = range(len(CLASSES))
GUARANTEED = {SHEDDABLE: 1, SHEDDABLE_PLUS: 1, CRITICAL: 5, CRITICAL_PLUS: 2}
"""Of ten slots."""


def make_gate(limit=10, max_waiting=10):
    return Gate(Breaker(None, lambda: 0.5), Bulkhead(limit, max_waiting))


def crowd(gate, rank, now=0.0, count=99):
    """Starts calls of a class that do not wait; returns the tickets of those admitted."""
    verdicts = [gate.enter(now, None, rank) for _ in range(count)]
    return [verdict for verdict in verdicts if isinstance(verdict, int)]


def wait_for_slot(gate, rank, now=0.0):
    waiter = Waiter()
    assert gate.enter(now, waiter, rank) is None
    return waiter


def end(gate, ticket, now=0.0):
    """Ends a call; returns the waiters that are woken."""
    gate.leave(now, ticket, Outcome.SUCCESS)
    return woken(gate)


def woken(gate):
    places, gate.outbox[:] = list(gate.outbox), []
    return places


@pytest.mark.parametrize("rank", range(len(CLASSES)), ids=CLASSES)
def test_the_only_active_class_may_use_every_slot(rank):
    """The guaranteed slots of inactive classes are free for others."""
    assert len(crowd(make_gate(), rank)) == 10


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((CRITICAL, 1), SHEDDABLE, 5),  # four more are reserved for CRITICAL
        ((CRITICAL, 5), SHEDDABLE, 3),  # two are left free for it
        ((CRITICAL, 8), SHEDDABLE, 1),
        ((CRITICAL, 9), SHEDDABLE, 1),
        ((SHEDDABLE, 1), CRITICAL, 9),  # the guaranteed slot of SHEDDABLE is taken
        ((CRITICAL_PLUS, 1), CRITICAL, 7),
        ((SHEDDABLE_PLUS, 1), SHEDDABLE, 7),
    ],
)
def test_guaranteed_slots_of_an_active_class_are_kept_free(first, second, expected):
    """It is active from its first call on."""
    rank, count = first
    gate = make_gate()
    crowd(gate, rank, count=count)
    assert len(crowd(gate, second)) == expected


def test_guarantees_are_rounded_down_for_each_class():
    """Of 19 slots: 1 for each of the lower two, 3 before each class above; any class may use the rest."""
    gate = make_gate(limit=19)
    for rank in (SHEDDABLE, SHEDDABLE_PLUS):
        end(gate, *crowd(gate, rank, count=1))
    assert len(crowd(gate, CRITICAL)) == 17
    gate = make_gate(limit=19)
    crowd(gate, CRITICAL, count=9)
    end(gate, *crowd(gate, CRITICAL_PLUS, count=1))
    assert len(crowd(gate, SHEDDABLE)) == 4


def test_a_guarantee_is_a_whole_number_of_slots():
    """Of 19 slots SHEDDABLE's tenth is one; it gets another only if no class reserves it."""
    gate = make_gate(limit=19)
    crowd(gate, SHEDDABLE, count=1)
    tickets = crowd(gate, CRITICAL)
    assert len(tickets) == 18
    end(gate, tickets[0])
    assert crowd(gate, SHEDDABLE) == []
    assert len(crowd(gate, CRITICAL)) == 1


def test_a_class_that_becomes_active_gets_its_guaranteed_slots_first():
    """As soon as they are freed."""
    gate = make_gate()
    tickets = crowd(gate, SHEDDABLE)
    waiting = [wait_for_slot(gate, SHEDDABLE), *(wait_for_slot(gate, CRITICAL) for _ in range(2))]
    assert end(gate, tickets.pop()) == [waiting[1]]
    assert end(gate, tickets.pop()) == [waiting[2]]
    assert end(gate, tickets.pop()) == [], "CRITICAL can count on five and has two"
    assert [waiter.verdict for waiter in waiting] == [None, "granted", "granted"]


def test_the_queue_is_by_class_and_then_in_order():
    """The most important first, whenever it came."""
    gate = make_gate(limit=1)
    (ticket,) = crowd(gate, SHEDDABLE)
    places = [wait_for_slot(gate, rank) for rank in (0, 2, 1, 2, 3, 0, 3)]
    order = []
    while ticket:
        heirs = end(gate, ticket)
        order += heirs
        ticket = gate.woken(0.0, heirs[0]) if heirs else None
    assert [places.index(waiter) for waiter in order] == [4, 6, 1, 3, 2, 0, 5]
    assert gate.bulkhead.taken == 0


@pytest.mark.parametrize(
    ("waiting", "newcomer", "admitted"),
    [(CRITICAL, CRITICAL, False), (SHEDDABLE, CRITICAL, True), (CRITICAL_PLUS, CRITICAL, True)],
)
def test_a_new_caller_overtakes_no_waiter_of_its_class(waiting, newcomer, admitted):
    """Not even if a slot is free. It may overtake a lower class, and a higher one within its guarantee."""
    gate = make_gate()
    crowd(gate, SHEDDABLE, count=1)
    waiter = Waiter()
    waiter.rank = waiting
    gate.bulkhead.try_queue_ranked(gate.bulkhead.ranks, waiter, 0.0)
    assert isinstance(gate.enter(0.0, None, newcomer), int) is admitted


def test_a_new_caller_beyond_its_guarantee_overtakes_no_higher_class():
    """The free slot is for the waiter."""
    gate = make_gate()
    crowd(gate, SHEDDABLE, count=1)
    waiter = Waiter()
    waiter.rank = CRITICAL
    gate.bulkhead.try_queue_ranked(gate.bulkhead.ranks, waiter, 0.0)
    assert gate.enter(0.0, None, SHEDDABLE) == Refusal("bulkhead_full", None)


def granted(gate, rank):
    """A waiter of a class that has been granted the only slot and has not claimed it yet."""
    (ticket,) = crowd(gate, rank)
    waiter = wait_for_slot(gate, rank)
    assert end(gate, ticket) == [waiter]
    return waiter


def test_an_unused_granted_slot_is_released_to_its_class():
    """The caller has given up, or the circuit has opened in between."""
    gate = make_gate(limit=1)
    gate.abandon(0.0, granted(gate, SHEDDABLE))
    assert gate.bulkhead.ranks.held == [0, 0, 0, 0]
    waiter = granted(gate, SHEDDABLE)
    gate.set_state(0.0, "forced_open")
    assert gate.woken(0.0, waiter) == Refusal("circuit_open", None)
    assert gate.bulkhead.ranks.held == [0, 0, 0, 0]


def test_a_caller_that_waited_counts_for_its_class():
    """As one that did not wait."""
    gate = make_gate(limit=1)
    for count in (2, 4):
        gate.leave(0.0, gate.woken(0.0, granted(gate, SHEDDABLE)), Outcome.SUCCESS)
        assert (gate.admitted, gate.noncritical_admitted) == (count, count)


def test_no_class_waits_in_half_open():
    """A probe that finds no slot is no probe."""
    gate = Gate(Breaker(BreakerPolicy(), lambda: 0.5), Bulkhead(1, 10))
    gate.set_state(0.0, "half_open")
    crowd(gate, SHEDDABLE, count=1)
    assert gate.enter(0.0, Waiter(), CRITICAL) == Refusal("bulkhead_full", None)
    assert not gate.bulkhead.queue


def test_a_full_queue_sheds_the_last_of_the_lowest():
    """A call that matters more takes its place; one that does not is refused."""
    gate = make_gate(limit=1, max_waiting=2)
    crowd(gate, CRITICAL)
    first, second = wait_for_slot(gate, SHEDDABLE), wait_for_slot(gate, SHEDDABLE)
    assert gate.enter(0.0, Waiter(), SHEDDABLE) == Refusal("shed", None)
    wait_for_slot(gate, CRITICAL)
    assert (woken(gate), second.verdict, first.verdict) == ([second], "shed", None)
    assert gate.woken(0.0, second) == Refusal("shed", None)
    assert gate.rejected["shed"] == 2


def test_without_a_queue_no_waiter_is_shed():
    """``max_waiting`` is 0."""
    gate = make_gate(limit=1, max_waiting=0)
    crowd(gate, SHEDDABLE)
    assert gate.enter(0.0, Waiter(), CRITICAL) == Refusal("bulkhead_full", None)
    assert woken(gate) == []


@pytest.mark.parametrize(
    ("above", "rank", "reason"),
    [
        (CRITICAL, SHEDDABLE, "shed"),
        (CRITICAL, SHEDDABLE_PLUS, "shed"),
        (CRITICAL_PLUS, CRITICAL, "shed"),
        (CRITICAL, CRITICAL, "bulkhead_full"),
        (SHEDDABLE, CRITICAL, "bulkhead_full"),
    ],
)
def test_the_reason_is_shed_if_a_higher_class_is_active(above, rank, reason):
    """Also if the caller has waited."""
    gate = make_gate(limit=1, max_waiting=1)
    crowd(gate, above)
    crowd(gate, SHEDDABLE, count=1)
    assert gate.enter(0.0, None, rank) == Refusal(reason, None)
    late = gate.woken(0.1, wait_for_slot(gate, rank))
    assert late == Refusal("shed" if reason == "shed" else "queue_timeout", None)


def test_a_queue_of_a_lower_class_does_not_cut_the_wait_of_a_higher_one():
    """It cuts only the wait of its own kind."""
    gate = make_gate(limit=1)
    crowd(gate, SHEDDABLE)
    wait_for_slot(gate, SHEDDABLE)
    patience = lambda rank: gate.bulkhead.wait_limit(0.05, CODEL_INTERVAL, rank)
    assert [patience(rank) for rank in (SHEDDABLE, CRITICAL)] == [CODEL_TARGET, 0.05]
    waiter = wait_for_slot(gate, CRITICAL)
    assert patience(CRITICAL) == CODEL_TARGET
    gate.abandon(CODEL_INTERVAL, waiter)
    assert patience(CRITICAL) == 0.05


def test_a_queue_from_before_ranks_cuts_the_wait_of_the_first_lower_call():
    """It stands since it began, and not since that call came."""
    gate = make_gate(limit=1)
    gate.enter(0.0, None)
    wait_for_slot(gate, CRITICAL)
    wait_for_slot(gate, SHEDDABLE, CODEL_INTERVAL)
    assert gate.bulkhead.wait_limit(0.05, CODEL_INTERVAL, SHEDDABLE) == CODEL_TARGET


def test_ranks_end_when_only_critical_calls_have_come_for_a_while():
    """Then the fast paths are open again."""
    gate = make_gate()
    ticket = gate.enter(0.0, None)
    assert gate.bulkhead.ranks is None
    low = gate.enter(0.0, None, SHEDDABLE)
    assert not gate.admits_all
    gate.leave(0.0, low, Outcome.SUCCESS)
    gate.refresh(ACTIVE - 0.1)
    assert gate.bulkhead.ranks is not None
    gate.refresh(ACTIVE)
    assert gate.bulkhead.ranks is None
    assert gate.admits_all
    assert end(gate, ticket, ACTIVE) == []
    assert gate.bulkhead.taken == 0


def test_calls_from_before_ranks_count_as_critical():
    """A first crowd of a lower class does not displace them."""
    gate = make_gate()
    end(gate, gate.enter(0.0, None))
    assert len(crowd(gate, SHEDDABLE)) == 5


def test_slots_adopted_while_there_are_ranks_are_critical():
    """Connections that were checked out before the guard was attached."""
    gate = make_gate()
    assert len(crowd(gate, SHEDDABLE, count=1)) == 1
    for count in (4, 5):
        gate.adopt(0.0, count)
    assert crowd(gate, CRITICAL) == []
    for _ in range(9):
        gate.check_in(0.0, 0)
    assert gate.bulkhead.ranks.held == [1, 0, 0, 0]


def reserved(gate, rank):
    """The book of a request of a class, with a slot in it that nothing uses yet."""
    return {gate: (None, gate.check_out(0.0, None, rank))}


@pytest.mark.parametrize("checkout", [False, True])
def test_a_reserved_slot_is_of_its_requests_class_whatever_takes_it_over(checkout):
    """A call or a checkout takes it over; it is freed for that class."""
    gate = make_gate()
    crowd(gate, CRITICAL, count=1)
    number = gate.take_over(0.0, reserved(gate, SHEDDABLE), checkout=checkout)
    assert gate.bulkhead.ranks.held == [1, 0, 1, 0]
    if checkout:
        gate.check_in(0.0, number)
    else:
        gate.leave(0.0, number, Outcome.SUCCESS)
    assert gate.bulkhead.ranks.held == [0, 0, 1, 0]
    assert gate.bulkhead.ranks.rank_by_number == {}


def test_a_reserved_slot_that_the_circuit_refuses_goes_back_to_its_class():
    """The circuit opened since."""
    gate = make_gate()
    crowd(gate, CRITICAL, count=1)
    book = reserved(gate, SHEDDABLE)
    gate.set_state(0.0, "forced_open")
    assert gate.take_over(0.0, book, checkout=True) == Refusal("circuit_open", None)
    assert gate.bulkhead.ranks.held == [0, 0, 1, 0]


def test_a_guard_with_only_sheddable_calls_reserves_no_slots():
    """CRITICAL calls that never come reserve none."""
    gate = make_gate()
    for now in (0.0, 100.0):
        tickets = crowd(gate, SHEDDABLE, now)
        assert len(tickets) == 10
        for ticket in tickets:
            gate.leave(now, ticket, Outcome.SUCCESS)
        gate.refresh(now + ACTIVE)
        assert gate.bulkhead.ranks is None


class Slots(RuleBasedStateMachine):
    """Ten slots, calls and checkouts of every class, and a list on paper of who holds what."""

    @initialize()
    def start(self):
        self.now = 0.0
        self.gate = make_gate(max_waiting=4)
        self.inside = []
        self.waiting = []
        self.asked = {}

    @rule(seconds=st.sampled_from([0, 1, 5, 30]))
    def wait(self, seconds):
        self.now += seconds

    @rule(rank=st.integers(0, 3), checkout=st.booleans(), patient=st.booleans(), times=st.integers(1, 6))
    def come(self, rank, checkout, patient, times):
        for _ in range(times):
            self.asked[rank] = self.now
            waiter = Waiter() if patient else None
            verdict = (self.gate.check_out if checkout else self.gate.enter)(self.now, waiter, rank)
            if isinstance(verdict, int):
                self.inside.append((verdict, checkout, rank))
                assert self.keeps_promises(rank)
            elif verdict is None:
                self.waiting.append((waiter, checkout, rank))
            self.collect()

    def keeps_promises(self, rank):
        """A slot beyond a class's own left every active class its guarantee, and two slots to each above."""
        held = Counter(rank for _, _, rank in self.inside)
        others = [one for one, at in self.asked.items() if self.now - at < ACTIVE and one != rank]
        kept = sum(max(GUARANTEED[one] - held[one], 2 * (one > rank)) for one in others)
        return held[rank] <= GUARANTEED[rank] or held.total() + kept <= 10

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def go(self, data):
        one = data.draw(st.sampled_from(self.inside))
        self.inside.remove(one)
        number, checkout, _ = one
        if checkout:
            self.gate.check_in(self.now, number)
        else:
            self.gate.leave(self.now, number, Outcome.SUCCESS)
        self.collect()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), comes_back=st.booleans())
    def give_up(self, data, comes_back):
        one = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(one)
        if comes_back:
            assert isinstance(self.gate.woken(self.now, one[0]), Refusal)
        else:
            self.gate.abandon(self.now, one[0])

    def collect(self):
        """Ends the waits of the woken callers: the granted are admitted, the shed are refused."""
        for waiter in woken(self.gate):
            (one,) = [one for one in self.waiting if one[0] is waiter]
            self.waiting.remove(one)
            _, checkout, rank = one
            verdict = (self.gate.woken_checkout if checkout else self.gate.woken)(self.now, waiter)
            if waiter.verdict == "settled":
                self.inside.append((verdict, checkout, rank))
            else:
                assert verdict == Refusal("shed", None)

    @rule(limit=st.just(10))
    def resize(self, limit):
        self.gate.resize(self.now, limit)
        self.collect()

    @invariant()
    def everything_adds_up(self):
        if hasattr(self, "gate"):
            slots = self.gate.bulkhead
            assert slots.taken == len(self.inside) <= 10
            assert list(slots.queue) == [waiter for waiter, _, _ in self.waiting]
            held = Counter(rank for _, _, rank in self.inside)
            if slots.ranks is not None:
                assert slots.ranks.held == [held[rank] for rank in range(4)]
                assert set(slots.ranks.rank_by_number.values()) <= set(range(4)) - {CRITICAL}
            else:
                assert set(held) <= {CRITICAL}


TestSlots = Slots.TestCase


def test_a_lower_waiter_that_leaves_keeps_the_standing_time():
    """As long as a CRITICAL caller waits, the queue stands since it came."""
    gate = make_gate(limit=1, max_waiting=5)
    crowd(gate, SHEDDABLE)
    wait_for_slot(gate, CRITICAL, 1.0)
    low = wait_for_slot(gate, SHEDDABLE, 1.1)
    gate.abandon(1.2, low)
    assert gate.bulkhead.queued_since == 1.0
