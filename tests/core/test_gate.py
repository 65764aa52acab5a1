"""Circuit and bulkhead behind one gate: the order of decisions, queues, and a pool's checkouts."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker, Transition
from guardrails._core.bulkhead import CODEL_INTERVAL, Bulkhead, Waiter
from guardrails._core.criticality import CLASSES, CRITICAL
from guardrails._core.gate import OPENING, Gate, Refusal
from guardrails._core.outcome import Outcome
from guardrails._core.window import NEVER
from support.shell import FastPaths

S, F, X, N = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED, Outcome.NEUTRAL
SHEDDABLE = CLASSES.index("SHEDDABLE")


@pytest.fixture
def gate():
    """Two slots, two places to wait, opens at the first failure for 5 s, one probe."""
    policy = BreakerPolicy(
        sliding_window_type="count",
        sliding_window_size=1,
        minimum_number_of_calls=1,
        wait_duration_in_open_state=5,
        open_jitter=0,
        permitted_calls_in_half_open_state=1,
        max_wait_duration_in_half_open_state=3,
    )
    return Gate(Breaker(policy, lambda: 0.5), Bulkhead(2, 2))


def drain(gate):
    items = [item.new if isinstance(item, Transition) else item for item in gate.outbox]
    gate.outbox.clear()
    return items


def trip(gate, now=0):
    assert gate.leave(now, gate.enter(now, None), F) is not None
    assert drain(gate) == ["open"]


def test_the_circuit_is_checked_before_a_slot(gate):
    """A full guard whose circuit is open says that the circuit is open."""
    first, second = gate.enter(0, None), gate.enter(0, None)
    assert gate.enter(0, None) == Refusal("bulkhead_full", None)
    gate.leave(0, first, F)
    assert gate.enter(1, None) == Refusal("circuit_open", 4)
    gate.leave(1, second, S)
    assert gate.rejected == {"bulkhead_full": 1, "circuit_open": 1}


def test_all_waiters_are_dismissed_when_the_circuit_opens(gate):
    """SM19: at once; no waiter gets the slot that was released."""
    tickets = [gate.enter(0, None) for _ in range(2)]
    places = [Waiter(), Waiter()]
    assert [gate.enter(0, waiter) for waiter in places] == [None, None]
    gate.leave(0, tickets[0], F)
    assert drain(gate) == ["open", *places]
    assert [gate.woken(0, waiter).reason for waiter in places] == ["circuit_open"] * 2
    assert gate.bulkhead.taken == 1


def test_the_circuit_is_checked_again_for_a_granted_waiter(gate):
    """It was granted while closed, and wakes up in an open circuit: the slot goes on."""
    tickets = [gate.enter(0, None) for _ in range(2)]
    waiter = Waiter()
    gate.enter(0, waiter)
    gate.leave(0, tickets[0], S)
    assert drain(gate) == [waiter]
    gate.set_state(0, "forced_open")
    assert gate.woken(0, waiter) == Refusal("circuit_open", None)
    gate.leave(0, tickets[1], S)
    assert gate.bulkhead.taken == 0


def test_a_wait_that_ends_as_the_slot_is_granted_is_granted(gate):
    """B3: exactly one of grant and timeout, and the grant wins if it was first."""
    tickets = [gate.enter(0, None) for _ in range(2)]
    first, second = Waiter(), Waiter()
    gate.enter(0, first)
    gate.enter(0, second)
    gate.leave(0, tickets[0], S)
    assert isinstance(gate.woken(0, first), int)
    assert gate.woken(0, second) == Refusal("queue_timeout", None)
    assert gate.woken.__self__.rejected == {"queue_timeout": 1}


def test_a_caller_that_leaves_after_the_grant_releases_the_slot(gate):
    """B2: before the grant it only leaves the queue."""
    tickets = [gate.enter(0, None) for _ in range(2)]
    first, second = Waiter(), Waiter()
    gate.enter(0, first)
    gate.enter(0, second)
    gate.leave(0, tickets[0], S)
    gate.abandon(0, first)
    assert second.verdict == "granted"
    gate.abandon(0, second)
    gate.leave(0, tickets[1], S)
    assert gate.bulkhead.taken == 0


def test_no_caller_waits_in_half_open(gate):
    """A probe that finds no slot is refused and does not wait."""
    hanging = [gate.enter(0, None) for _ in range(2)]
    gate.set_state(0, "half_open")
    assert gate.enter(0, Waiter()) == Refusal("bulkhead_full", None)
    for ticket in hanging:
        gate.leave(0, ticket, S)


def test_a_clock_that_goes_back_counts_as_standing_still(gate):
    """SM2: an open period is neither shortened nor extended."""
    trip(gate, now=10)
    assert gate.enter(3, None) == Refusal("circuit_open", 5)
    assert gate.enter(14, None) == Refusal("circuit_open", 1)
    assert isinstance(gate.enter(15, None), int)


def test_a_checkout_is_a_slot_and_no_evidence(gate):
    """Its statements are the evidence, and may fail without giving the slot back."""
    slot = gate.check_out(0, None)
    assert (gate.bulkhead.taken, gate.breaker.window.calls) == (1, 0)
    gate.end(0, gate.begin(0, slot), F)
    assert (gate.breaker.state, gate.bulkhead.taken) == ("open", 1)
    gate.check_in(0, slot)
    gate.check_in(0, slot)
    assert gate.bulkhead.taken == 0


def test_a_checkout_that_is_held_on_purpose_is_not_the_oldest(gate):
    """It may last for hours. Its slot stays taken, and comes back once."""
    first, second = gate.check_out(0, None), gate.check_out(3, None)
    assert gate.age_of_oldest(5) == 5
    gate.hold_on_purpose(4, first)
    assert (gate.age_of_oldest(5), gate.bulkhead.taken) == (2, 2)
    gate.check_in(5, second)
    assert gate.age_of_oldest(9) is None
    gate.hold_on_purpose(9, second)
    gate.check_in(9, first)
    gate.check_in(9, first)
    assert (gate.age_of_oldest(9), gate.bulkhead.taken) == (None, 0)


def test_a_probes_checkout_without_a_statement_returns_its_lease(gate):
    """The next checkout is the probe then."""
    trip(gate)
    slot = gate.check_out(5, None)
    assert gate.check_out(5, None) == Refusal("circuit_open", gate.breaker.slow_after)
    gate.check_in(5, slot)
    slot = gate.check_out(5, None)
    gate.end(5, gate.begin(5, slot), S)
    assert gate.breaker.state == "closed"
    gate.check_in(5, slot)


def probing(now=5, probes=1):
    """A gate whose slow-call threshold is 1 s, and the slot of the first probe's checkout."""
    policy = BreakerPolicy(
        minimum_number_of_calls=1, permitted_calls_in_half_open_state=probes, open_jitter=0
    )
    gate = Gate(Breaker(policy, lambda: 0.5), Bulkhead(2, 2))
    trip(gate)
    return gate, gate.check_out(now, None)


def state_after(gate, slot, moves):
    """The state after statements on a checkout: (begin, end, outcome) each."""
    for begin, end, outcome in moves:
        gate.end(end, gate.begin(begin, slot), outcome, slot)
    return gate.breaker.state


def test_a_quick_statement_does_not_pass_a_probe_whose_next_statement_hangs():
    """A look-up of the user, and then a table that is locked."""
    gate, slot = probing()
    assert state_after(gate, slot, [(5, 5.01, S), (5.02, 5.03, S)]) == "half_open"
    gate.begin(5.1, slot)
    gate.refresh(6.2)
    assert drain(gate) == ["half_open", "open"]


@pytest.mark.parametrize(("last", "state"), [(S, "closed"), (F, "open"), (X, "half_open"), (N, "closed")])
def test_a_probe_has_the_result_of_its_last_statement(last, state):
    """It passes when its connection comes back; a statement that was given up leaves no result."""
    gate, slot = probing()
    assert state_after(gate, slot, [(5, 5.01, S), (5.02, 5.03, last)]) == (
        "open" if last is F else "half_open"
    )
    gate.check_in(5.1, slot)
    assert gate.breaker.state == state
    assert not gate.breaker.permits
    assert not gate.breaker.good_since


def test_a_probe_whose_connection_stays_out_passes_after_the_slow_call_threshold():
    """A long transaction does not keep all others out."""
    gate, slot = probing()
    assert state_after(gate, slot, [(5, 5.25, S)]) == "half_open"
    gate.refresh(6.24)
    assert gate.breaker.state == "half_open"
    gate.refresh(6.25)
    assert gate.breaker.state == "closed"
    gate.check_in(9, slot)
    assert gate.breaker.evidence(9)[0] == 0, "the probe's result was that of the round"


def test_a_statement_under_way_decides_a_probe_after_the_slow_call_threshold():
    """It began before the threshold and may still become slow."""
    gate, slot = probing()
    state_after(gate, slot, [(5, 5.25, S)])
    ticket = gate.begin(6, slot)
    gate.refresh(6.5)
    assert gate.breaker.state == "half_open"
    gate.end(6.6, ticket, S, slot)
    assert gate.breaker.state == "closed"


def test_a_probe_whose_lease_was_lost_before_its_statement_leaves_nothing():
    """Its permit expired while it was idle; the circuit was opened, and its statement was late."""
    gate, slot = probing()
    gate.refresh(15)
    assert drain(gate) == ["half_open", "open"]
    state_after(gate, slot, [(15, 15.1, S)])
    gate.check_in(16, slot)
    breaker = gate.breaker
    assert (breaker.overdue, breaker.in_flight, breaker.good_since, breaker.permits) == ({}, {}, {}, {})


def test_an_opening_does_not_take_the_lease_of_a_checkout_that_rests():
    """It may fail, which says nothing of that checkout."""
    gate, slot = probing()
    state_after(gate, slot, [(5, 5.01, S)])
    gate.end(5.2, gate.begin(5.1, OPENING), F)
    assert gate.breaker.state == "half_open"
    gate.check_in(5.3, slot)
    assert gate.breaker.state == "closed"


def closed(**policy):
    policy = BreakerPolicy(**{"minimum_number_of_calls": 100, **policy})
    return Gate(Breaker(policy, lambda: 0.5), Bulkhead(2, 2))


def test_the_statements_of_a_checkout_are_one_call():
    """Each is counted as succeeded; the circuit sees one success, when the connection comes back."""
    gate = closed()
    slot = gate.check_out(0, None)
    state_after(gate, slot, [(0, 0.1, S), (0.1, 0.2, S), (0.2, 0.3, N), (0.3, 0.4, S)])
    assert gate.breaker.evidence(0.4)[:3] == (0, 0, 0)
    assert gate.breaker.last_success_at == 0.4, "a pool whose statements are answered does not stall"
    gate.check_in(0.5, slot)
    assert gate.breaker.evidence(0.5)[:3] == (1, 0, 0)
    assert (gate.breaker.succeeded, gate.breaker.last_success_at) == (4, 0.5)


def test_a_good_statement_of_a_checkout_that_goes_on_puts_a_stall_off():
    """A report holds one slot for long. The slow statement in the other one has a threshold to end."""
    gate = Gate(Breaker(BreakerPolicy(permitted_calls_in_half_open_state=2), lambda: 0.5), Bulkhead(2, 2))
    gate.watch_for_stalls(0, on=True)
    gate.begin(0, gate.check_out(0, None))
    slot = gate.check_out(3, None)
    state_after(gate, slot, [(3, 3.5, S)])
    gate.begin(3.6, slot)
    gate.refresh(5.4)
    assert gate.breaker.state == "closed"
    gate.refresh(5.6)
    assert drain(gate) == ["open"]


@pytest.mark.parametrize("quick", [0, 1, 2, 30])
def test_quick_statements_before_the_one_that_fails_do_not_lower_the_rate(quick):
    """Else the circuit of a route with three statements would never open."""
    gate = closed(minimum_number_of_calls=10, failure_rate_threshold=1)
    for number in range(10):
        slot = gate.check_out(number, None)
        state_after(gate, slot, [(number, number, S)] * quick + [(number, number, F)])
        gate.check_in(number, slot)
    assert gate.breaker.state == "open"


@pytest.mark.parametrize("outcome", [F, X])
def test_a_statement_that_is_not_good_ends_the_call_on_the_fast_path_too(outcome):
    """The success of earlier statements is not recorded when the connection is returned."""
    gate = closed()
    gate.refresh(0)
    fast, slot = FastPaths(gate), gate.check_out(0, None)
    assert fast.ends(0, fast.begins(0), S, 0, slot)
    assert gate.breaker.good_since == {slot: 0}
    assert fast.ends(0, fast.begins(0), outcome, 0, slot)
    assert gate.breaker.good_since == {}
    assert fast.checks_in(0, slot)
    assert gate.breaker.evidence(0)[:3] == ((1, 1, 0) if outcome is F else (0, 0, 0))


def test_a_slow_statement_is_the_result_of_its_checkout():
    """It counts as soon as it is overdue; the quick one before it does not count."""
    gate = closed()
    slot = gate.check_out(0, None)
    state_after(gate, slot, [(0, 0.1, S), (0.2, 1.5, S)])
    gate.check_in(1.6, slot)
    assert gate.breaker.evidence(1.6)[:3] == (1, 0, 1)


def test_a_connection_that_is_held_gives_a_result_for_each_slow_call_threshold():
    """A worker may keep one for hours."""
    gate = closed()
    slot = gate.check_out(0, None)
    state_after(gate, slot, [(tenth / 10, tenth / 10, S) for tenth in range(35)])
    assert gate.breaker.evidence(3.5)[:3] == (3, 0, 0)
    gate.check_in(3.5, slot)
    assert gate.breaker.evidence(3.5)[:3] == (4, 0, 0)


def test_a_statement_that_outlives_its_checkout_is_a_call_of_its_own():
    """The pool was disposed of meanwhile, and the slot went back early."""
    gate = closed()
    slot = gate.check_out(0, None)
    ticket = gate.begin(0, slot)
    gate.check_in(0.1, slot)
    gate.end(0.2, ticket, S, slot)
    assert gate.breaker.evidence(0.2)[:3] == (1, 0, 0)
    assert not gate.breaker.good_since


@pytest.mark.parametrize("transition", ["reset", "half_open"])
def test_a_checkout_that_began_before_a_transition_has_no_result(transition):
    """Its statement was good before; what counts is what follows."""
    gate = closed()
    slot = gate.check_out(0, None)
    state_after(gate, slot, [(0, 0.1, S)])
    gate.set_state(0.2, transition)
    gate.check_in(0.3, slot)
    assert gate.breaker.evidence(0.3)[:3] == (0, 0, 0)


def test_a_statement_during_which_the_circuit_was_reset_has_no_result():
    """It is the last call that began before."""
    gate = closed()
    slot = gate.check_out(0, None)
    ticket = gate.begin(0, slot)
    gate.set_state(0.1, "reset")
    gate.end(0.2, ticket, S, slot)
    gate.check_in(0.3, slot)
    assert gate.breaker.evidence(0.3)[:3] == (0, 0, 0)
    assert (gate.breaker.late, gate.breaker.last_success_at) == (1, NEVER)


def test_an_opening_is_a_call_of_its_own():
    """It has no checkout yet; the first slot may be that of another connection."""
    gate = closed()
    assert gate.check_out(0, None) == 1
    gate.end(0.1, gate.begin(0, OPENING), S)
    assert gate.breaker.evidence(0.1)[:3] == (1, 0, 0)


def test_the_success_of_a_checkout_is_that_of_its_workload():
    """And it makes up for the failure before it."""
    gate = closed()
    workload = gate.add_workload(0, Breaker(BreakerPolicy(), lambda: 0.5))
    gate.breaker.caller_workload = workload
    for at, outcome in ((1, F), (2, S)):
        slot = gate.check_out(at, None)
        state_after(gate, slot, [(at, at, S), (at, at, outcome)])
        assert workload.bad_calls == 1
        gate.check_in(at + 0.5, slot)
    assert (workload.bad_calls, workload.last_success_at) == (0, 2.5)
    assert not gate.breaker.workload_by_ticket


@pytest.mark.parametrize("when", ["returned", "expired"])
def test_the_success_of_a_probes_checkout_is_that_of_its_workload(when):
    """Also where its connection stays out for longer than the slow-call threshold."""
    gate = closed(minimum_number_of_calls=1, permitted_calls_in_half_open_state=1, open_jitter=0)
    gate.breaker.caller_workload = workload = gate.add_workload(0, Breaker(None, lambda: 0.5))
    trip(gate)
    assert workload.bad_calls == 1
    slot = gate.check_out(5, None)
    state_after(gate, slot, [(5, 5.25, S)])
    gate.breaker.caller_workload = None
    gate.check_in(5.5, slot) if when == "returned" else gate.refresh(6.5)
    ended = 5.5 if when == "returned" else 6.5
    assert [change.at for change in gate.outbox] == [5, ended]
    assert (workload.bad_calls, workload.last_success_at) == (0, ended)
    assert (gate.breaker.state, gate.breaker.last_success_at) == ("closed", ended)
    assert not gate.breaker.workload_by_ticket


def test_a_probe_that_has_passed_with_its_connection_out_is_counted_once():
    """The round has a second probe, so that its circuit is still half-open."""
    gate, slot = probing(probes=2)
    state_after(gate, slot, [(5, 5.25, S)])
    gate.refresh(6.25)
    assert (gate.breaker.state, gate.breaker.round.calls, gate.breaker.good_since) == ("half_open", 1, {})
    gate.check_in(7, slot)
    assert (gate.breaker.state, gate.breaker.round.calls) == ("half_open", 1)


@pytest.mark.parametrize("last", [F, X])
@pytest.mark.parametrize("fast", [False, True])
def test_a_checkout_whose_last_statement_was_not_good_leaves_no_record_of_its_workload(last, fast):
    """A process makes millions of them."""
    gate = closed()
    gate.breaker.caller_workload = gate.add_workload(0, Breaker(BreakerPolicy(), lambda: 0.5))
    slot = gate.check_out(1, None)
    state_after(gate, slot, [(1, 1, S), (1, 1, last)])
    if fast:
        assert FastPaths(gate).checks_in(1.5, slot)
    else:
        gate.check_in(1.5, slot)
    assert not gate.breaker.workload_by_ticket


def test_an_interrupted_return_of_a_checkout_leaves_no_record_of_its_statements(monkeypatch):
    """Its slot is released by the next move; no later one could name it."""
    gate = closed()
    gate.breaker.caller_workload = gate.add_workload(0, Breaker(BreakerPolicy(), lambda: 0.5))
    slot = gate.check_out(1, None)
    state_after(gate, slot, [(1, 1, S)])
    with monkeypatch.context() as patch:
        patch.setattr(Breaker, "end_checkout", interrupt)
        with pytest.raises(KeyboardInterrupt):
            gate.check_in(1.5, slot)
    gate.check_in(1.5, slot)
    breaker = gate.breaker
    assert (gate.bulkhead.taken, breaker.good_since, breaker.workload_by_ticket) == (0, {}, {})


@pytest.mark.parametrize("when", ["returned", "expired"])
def test_an_interrupted_end_of_a_probe_leaves_its_success(monkeypatch, when):
    """A permit without an answer would expire as a slow probe and open the circuit again."""
    gate, slot = probing()
    state_after(gate, slot, [(5, 5.1, S)])
    with monkeypatch.context() as patch:
        patch.setattr(Breaker, "_end_probe", interrupt)
        with pytest.raises(KeyboardInterrupt):
            gate.check_in(5.2, slot) if when == "returned" else gate.refresh(6.2)
    gate.check_in(6.3, slot)
    gate.refresh(6.4)
    assert gate.breaker.state == "closed"
    assert not gate.breaker.good_since


def test_a_checkout_that_never_ends_is_judged_when_its_lease_expires(gate):
    """A lost probe cannot hold the circuit half-open, and its late return changes nothing."""
    trip(gate)
    slot = gate.check_out(5, None)
    assert gate.refresh(8) == 8
    assert drain(gate) == ["half_open", "open"]
    gate.check_in(9, slot)
    assert (gate.bulkhead.taken, gate.breaker.state) == (0, "open")


def reserved(gate, now=0):
    """The book of a request, with a slot in it that nothing uses yet."""
    return {gate: (None, gate.check_out(now, None))}


def test_a_reserved_slot_is_counted_once(gate):
    """The work it was reserved for needs no second one, neither as a checkout nor as a plain call."""
    for checkout, leave in ((True, gate.check_in), (False, lambda now, slot: gate.leave(now, slot, S))):
        book = reserved(gate)
        used = gate.take_over(1, book, checkout=checkout)
        assert (gate.bulkhead.taken, book) == (1, {})
        leave(2, used)
        assert (gate.bulkhead.taken, gate.checkouts, gate.breaker.in_flight) == (0, {}, {})
    assert gate.breaker.succeeded == 1


@pytest.mark.parametrize("workload", [False, True])
def test_a_call_in_a_reserved_slot_has_the_next_ticket(gate, workload):
    """And is one of the workload on whose behalf it is made."""
    for _ in range(2):
        gate.leave(0, gate.enter(0, None), S)
    gate.breaker.caller_workload = part = (
        gate.add_workload(0, Breaker(None, lambda: 0.5)) if workload else None
    )
    held = [0]
    assert gate.take_over(1, reserved(gate), held, checkout=False) == 3
    assert (held, gate.breaker.last_ticket, gate.breaker.in_flight) == ([3], 3, {3: 1})
    assert gate.breaker.workload_by_ticket == ({3: part} if workload else {})
    assert gate.enter(1, None) == 4


def test_a_call_in_a_reserved_slot_of_a_probe_has_the_probes_ticket(gate):
    trip(gate)
    book, held = reserved(gate, now=5), [0]
    assert gate.take_over(6, book, held, checkout=False) == 2
    assert (held, gate.breaker.last_ticket, gate.breaker.in_flight) == ([2], 2, {2: 6})
    assert list(gate.breaker.permits) == [2]


@pytest.mark.parametrize("fast", [False, True])
def test_a_checkout_in_a_reserved_slot_is_as_old_as_its_work(gate, fast):
    """The slot was reserved earlier. Another connection that was taken meanwhile is older."""
    book = reserved(gate)
    other = gate.check_out(1, None)
    gate.refresh(2.5)
    if fast:
        paths = FastPaths(gate)
        paths.now = 3
        used = paths._take_reserved_slot(book)
    else:
        used = gate.take_over(3, book, checkout=True)
    assert list(gate.checkouts.items()) == [(other, (1, 0)), (used, (3, 0))]
    assert gate.age_of_oldest(4) == 3


def test_the_oldest_call_may_be_overdue_under_way_or_a_checkout(gate):
    """Each of these three can be the oldest."""
    assert gate.age_of_oldest(0) is None
    ticket = gate.enter(1, None)
    assert gate.age_of_oldest(1.5) == 0.5
    slot = gate.check_out(1.75, None)
    assert gate.age_of_oldest(1.875) == 0.875
    gate.refresh(2.5)
    assert gate.breaker.overdue
    assert gate.age_of_oldest(2.5) == 1.5
    gate.leave(2.5, ticket, S)
    assert gate.age_of_oldest(2.5) == 0.75
    gate.begin(2.5, slot)
    gate.check_in(2.75, slot)
    assert gate.age_of_oldest(3) == 0.5


def test_a_reserved_slot_that_is_not_used_goes_to_the_next(gate):
    """It is no evidence, and goes back once."""
    book, _ = reserved(gate), reserved(gate)
    waiter = Waiter()
    assert gate.check_out(0, waiter) is None
    gate.check_in(1, book[gate][1])
    assert (drain(gate), gate.woken_checkout(1, waiter) in gate.checkouts) == ([waiter], True)
    gate.check_in(1, book[gate][1])
    assert gate.take_over(1, book, checkout=True) is None
    assert gate.bulkhead.taken == 2


@pytest.mark.parametrize("checkout", [True, False])
def test_a_slot_reserved_before_the_circuit_opened_is_refused(gate, checkout):
    """The circuit is checked again after the wait; the slot stays free."""
    book = reserved(gate)
    trip(gate)
    assert gate.take_over(1, book, checkout=checkout) == Refusal("circuit_open", 4)
    assert (gate.bulkhead.taken, book, gate.checkouts) == (0, {}, {})


@pytest.mark.parametrize("checkout", [True, False])
def test_a_reserved_probe_is_the_probe(gate, checkout):
    """Its permit was taken with the slot, so no other call is admitted, and its result closes the circuit."""
    trip(gate)
    book = reserved(gate, now=5)
    assert gate.check_out(5, None).reason == "circuit_open"
    used = gate.take_over(6, book, checkout=checkout)
    if checkout:
        gate.end(6, gate.begin(6, used), S)
        gate.check_in(6, used)
    else:
        gate.leave(6, used, S)
    assert (gate.breaker.state, gate.bulkhead.taken) == ("closed", 0)


def test_an_open_circuit_is_kept_open_for_longer_or_let_go(gate):
    """As a fleet says; a circuit that is not open is left alone."""
    gate.keep_open(0, 60)
    assert gate.check_out(0, None) in gate.checkouts
    trip(gate)
    gate.keep_open(1, 2)
    assert gate.check_out(4, None) == Refusal("circuit_open", 1), "never for less long than its own period"
    gate.keep_open(4, 3)
    assert gate.check_out(6, None) == Refusal("circuit_open", 1)
    gate.keep_open(6, None)
    assert gate.check_out(6, None) in gate.checkouts


@pytest.mark.parametrize("checkout", [True, False])
def test_a_reserved_probe_that_comes_too_late_leaves_nothing_of_its_first_lease(gate, checkout):
    """Its permit has expired, so it takes another one."""
    trip(gate)
    book = reserved(gate, now=5)
    gate.set_state(8.5, "half_open")
    used = gate.take_over(9, book, checkout=checkout)
    (gate.check_in if checkout else lambda now, call: gate.leave(now, call, S))(9.5, used)
    assert (gate.breaker.overdue, gate.breaker.permits, gate.breaker.in_flight) == ({}, {}, {})
    assert gate.bulkhead.taken == 0


def test_a_reserved_probe_that_is_not_used_returns_its_lease(gate):
    """The next request may probe at once."""
    trip(gate)
    gate.check_in(5, reserved(gate, now=5)[gate][1])
    assert isinstance(gate.enter(5, None), int)


def test_a_slot_reserved_while_closed_becomes_a_probe_in_half_open(gate):
    """Its work is admitted to the round like anybody's, or refused like anybody's."""
    first, second = reserved(gate), reserved(gate)
    gate.set_state(0, "half_open")
    assert isinstance(gate.take_over(0, first, checkout=True), int)
    assert gate.take_over(0, second, checkout=True).reason == "circuit_open"
    assert (len(gate.breaker.permits), gate.bulkhead.taken) == (1, 1)


def test_adopted_slots_come_back_without_a_number(gate):
    """Those of checkouts from before the guard; no more than were counted."""
    gate.adopt(0, 2)
    assert gate.check_out(0, None) == Refusal("bulkhead_full", None)
    for _ in range(5):
        gate.check_in(0, 0)
    assert (gate.bulkhead.taken, gate.adopted) == (0, 0)


def test_a_waiting_checkout_gets_its_number_when_it_wakes(gate):
    """And who withdraws gets none."""
    slots = [gate.check_out(0, None) for _ in range(2)]
    first, second = Waiter(), Waiter()
    gate.check_out(0, first)
    gate.check_out(0, second)
    gate.check_in(0, slots[0])
    number = gate.woken_checkout(0, first)
    assert number in gate.checkouts
    assert gate.woken_checkout(0, second, "deadline_spent") == Refusal("deadline_spent", None)
    gate.check_in(0, number)
    gate.check_in(0, slots[1])
    assert not gate.checkouts


def test_preview_refuses_without_taking_a_slot(gate):
    """It returns the circuit's refusal; for a due probe it returns None and takes no permit."""
    assert gate.preview(0) is None
    trip(gate)
    assert gate.preview(1) == Refusal("circuit_open", 4)
    assert gate.preview(5) is None
    assert (gate.bulkhead.taken, gate.breaker.permits) == (0, {})


def test_stalls_follow_the_number_of_slots(gate):
    """Watching for them is switched on and off, and a resize moves the mark."""
    gate.watch_for_stalls(0, on=True)
    for limit, slots in ((7, 7), (1, 1), (0, 1)):
        gate.resize(0, limit)
        assert gate.breaker.stall_slots == slots
    gate.watch_for_stalls(0, on=False)
    gate.resize(0, 3)
    assert gate.breaker.stall_slots is None


def test_a_child_of_a_fork_starts_empty(gate):
    """It has no calls and no waiters; the ends of the parent's calls change nothing."""
    ticket, book = gate.enter(0, None), reserved(gate)
    gate.enter(0, Waiter())
    gate.drop_calls_and_waiters()
    assert gate.take_over(0, book, checkout=True) is None
    assert gate.leave(0, ticket, F) is None
    gate.check_in(0, book[gate][1])
    assert (gate.bulkhead.taken, len(gate.bulkhead.queue), gate.breaker.state) == (0, 0, "closed")
    assert gate.admits_all


def test_a_granted_slot_is_taken_once(gate):
    """The caller, a waker that finds the loop closed, or the collector: only the first releases the slot."""
    for first in (Gate.woken, Gate.abandon):
        tickets = [gate.enter(0, None) for _ in range(2)]
        waiter = Waiter()
        gate.enter(0, waiter)
        gate.leave(0, tickets[0], S)
        assert waiter.verdict == "granted"
        ticket = first(gate, 0, waiter)
        gate.abandon(0, waiter)
        gate.abandon(0, waiter)
        if ticket is not None:
            gate.leave(0, ticket, S)
        gate.leave(0, tickets[1], S)
        assert gate.bulkhead.taken == 0


def test_a_waiter_leaves_the_queue_once(gate):
    """Also one that was never granted."""
    tickets = [gate.enter(0, None) for _ in range(2)]
    waiter = Waiter()
    gate.enter(0, waiter)
    gate.woken(0, waiter)
    gate.abandon(0, waiter)
    for ticket in tickets:
        gate.leave(0, ticket, S)
    assert (gate.bulkhead.taken, len(gate.bulkhead.queue)) == (0, 0)


def test_a_slow_call_closes_the_fast_leave_until_the_minimum_is_met():
    """Before, the next result may complete the minimum and open the circuit; after, a success cannot."""
    policy = BreakerPolicy(minimum_number_of_calls=4, slow_call_duration_threshold=1, open_jitter=0)
    gate = Gate(Breaker(policy, lambda: 0.5), Bulkhead(9, 0))
    gate.leave(1.5, gate.enter(0.0, None), S)
    for _ in range(3):
        ticket = FastPaths(gate).begins(1.6) or gate.begin(1.6, 0)
        assert not FastPaths(gate).ends(1.7, ticket)
        assert gate.end(1.7, ticket, S) is not None
    ticket = FastPaths(gate).begins(1.8)
    assert FastPaths(gate).ends(1.8, ticket)
    assert gate.breaker.evidence(1.8)[0] == 5


@pytest.mark.parametrize(
    ("options", "quick"),
    [
        ({"minimum_number_of_calls": 10}, 4),  # the fifth of ten would be half of them
        ({"minimum_number_of_calls": 10, "consecutive_failures": 3}, 2),
        ({"minimum_number_of_calls": 1}, 0),
        ({"minimum_number_of_calls": 10_000}, 256),
    ],
)
def test_failures_take_the_fast_path_while_they_cannot_open_the_circuit(options, quick):
    """Also after a reader has added the pending results."""
    for looks in (False, True):
        gate = Gate(Breaker(BreakerPolicy(**options), lambda: 0.5), Bulkhead(9, 0))
        gate.refresh(0.1)
        tickets = [gate.begin(0.1, 0) for _ in range(quick + 1)]
        ways = []
        for ticket in tickets:
            ways.append(FastPaths(gate).ends(0.1, ticket, F))
            if looks:
                gate.breaker.evidence(0.1)
        assert ways == [True] * quick + [False]
        assert gate.breaker.evidence(0.1)[:2] == (quick, quick)
        assert (gate.breaker.failed, gate.breaker.streak) == (quick, quick)


def test_pending_results_are_added_in_their_order():
    """Of the last four calls, the success before the failures is forgotten first."""
    policy = BreakerPolicy(
        sliding_window_type="count",
        sliding_window_size=4,
        minimum_number_of_calls=4,
        failure_rate_threshold=1,
    )
    gate = Gate(Breaker(policy, lambda: 0.5), Bulkhead(9, 0))
    gate.refresh(0.1)
    for outcome in (S, F, F, S):
        assert FastPaths(gate).ends(0.1, FastPaths(gate).begins(0.1), outcome)
    assert gate.breaker.evidence(0.1)[:2] == (4, 2)
    assert gate.breaker.streak == 0
    seen = []
    for _ in range(3):
        gate.end(0.1, gate.begin(0.1, 0), S)
        seen.append(gate.breaker.evidence(0.1)[1])
    assert seen == [2, 1, 0]


def test_a_refusal_decided_elsewhere_is_counted_by_its_reason(gate):
    """``retry_after`` is None if the time is unknown."""
    assert gate.refuse(3, "deadline_spent") == Refusal("deadline_spent", None)
    assert (gate.rejected, gate.last) == ({"deadline_spent": 1}, 3)


def test_the_duration_of_a_restarted_call_counts_from_then_on(gate):
    """The wait at another gate is not part of its duration."""
    ticket = gate.enter(0, None)
    gate.restart(50, ticket)
    assert gate.last == 50
    assert gate.leave(51, ticket, S) == (1, False)


def test_slots_may_be_adopted_one_after_the_other(gate):
    """Each time so many more."""
    gate.adopt(0, 1)
    gate.adopt(0, 1)
    assert (gate.adopted, gate.bulkhead.taken) == (2, 2)
    gate.check_in(0, 0)
    gate.check_in(0, 0)
    assert (gate.adopted, gate.bulkhead.taken) == (0, 0)


def test_a_checkout_that_waited_in_vain_raises_queue_timeout(gate):
    """And one that waited with success knows since when it has its slot."""
    slots = [gate.check_out(0, None) for _ in range(2)]
    first, second = Waiter(), Waiter()
    gate.check_out(1, first)
    gate.check_out(1, second)
    gate.check_in(2, slots[0])
    assert gate.checkouts[gate.woken_checkout(3, first)] == (3, 0)
    assert gate.woken_checkout(3, second) == Refusal("queue_timeout", None)


def test_a_probes_connection_returned_in_the_middle_of_its_statement(gate):
    """The statement was abandoned: no evidence, and the next checkout is the probe."""
    trip(gate)
    slot = gate.check_out(5, None)
    gate.begin(5, slot)
    gate.check_in(5, slot)
    assert (gate.breaker.abandoned, gate.breaker.round.calls, gate.breaker.permits) == (1, 0, {})
    assert isinstance(gate.check_out(5, None), int)


def test_a_statement_on_an_adopted_connection_is_no_probe(gate):
    """It was there before the guard; the round's permit belongs to whom it was given."""
    gate.adopt(0, 1)
    gate.set_state(0, "half_open")
    slot = gate.check_out(0, None)
    _, permit = gate.checkouts[slot]
    assert gate.begin(0, 0) != permit
    assert gate.begin(0, slot) == permit


def test_a_forked_child_has_no_standing_queue(gate):
    """Its first waiter may wait the full time, whatever the parent's queue was."""
    for _ in range(3):
        gate.enter(0, Waiter())
    gate.drop_calls_and_waiters()
    assert gate.bulkhead.wait_limit(1.0, 99) == 1.0


# --- the fast paths, move by move ----------------------------------------------------------------


@pytest.fixture
def calm(gate):
    """A gate with a call under way since 0, and so with fast paths until it is overdue at 1."""
    gate.enter(0, None)
    gate.refresh(0)
    assert (gate.fast_enter_until, gate.fast_leave_until) == (1, 1)
    return gate


def test_the_fast_paths_close_when_a_call_becomes_overdue(calm):
    """To the moment: from 1 on something else may have to be done."""
    slot, ticket = FastPaths(calm).check_out(0.1), FastPaths(calm).begins(0.1)
    assert slot
    assert ticket
    assert not FastPaths(calm).checks_in(1, slot)
    assert not FastPaths(calm).ends(1, ticket)
    assert FastPaths(calm).begins(1) == 0
    assert FastPaths(calm).ends(0.9, ticket)
    assert FastPaths(calm).checks_in(0.9, slot)
    assert FastPaths(calm).check_out(1) == 0


def test_a_fast_move_updates_the_latest_time(calm):
    """A clock that goes back stands still."""
    slot = FastPaths(calm).check_out(0.3)
    assert calm.last == 0.3
    assert calm.checkouts[slot] == (0.3, 0)
    ticket = FastPaths(calm).begins(0.2)
    assert (calm.last, calm.breaker.in_flight[ticket]) == (0.3, 0.3)
    FastPaths(calm).begins(0.4)
    assert calm.last == 0.4
    FastPaths(calm).ends(0.5, ticket)
    assert calm.last == 0.5
    FastPaths(calm).checks_in(0.6, slot)
    assert calm.last == 0.6
    assert calm.bulkhead.taken == 1


def test_the_fast_path_takes_no_slot_beyond_the_limit(calm):
    """A full guard takes the slow path, which may wait."""
    assert FastPaths(calm).check_out(0.1)
    assert FastPaths(calm).check_out(0.1) == 0
    assert calm.bulkhead.taken == calm.bulkhead.limit


def test_a_full_bulkhead_refuses_the_quick_way(calm):
    """While only the bulkhead refuses and its queue has no room; one by one, and at their moments."""
    FastPaths(calm).check_out(0.1)
    places = [Waiter(), Waiter()]
    assert [calm.enter(0.2, waiter) for waiter in places] == [None, None]
    full = Refusal("bulkhead_full", None)
    assert [FastPaths(calm).check_out(now) for now in (0.25, 0.3)] == [full, full]
    assert (calm.last, calm.rejected) == (0.3, {"bulkhead_full": 2})
    assert calm.check_out(0.35, None) == full
    assert calm.rejected == {"bulkhead_full": 3}
    assert FastPaths(calm).check_out(1) == 0
    calm.woken(0.4, places[0])
    assert FastPaths(calm).check_out(0.45) == 0
    assert FastPaths(calm).check_out(0.2 + CODEL_INTERVAL) == full
    assert calm.rejected == {"bulkhead_full": 4, "queue_timeout": 1}


def test_a_full_bulkhead_without_a_queue_refuses_the_quick_way(calm):
    """However many might wait, if they would not wait at all."""
    quick = FastPaths(calm)
    quick.max_wait = 0
    assert quick.check_out(0.1)
    assert quick.check_out(0.1) == Refusal("bulkhead_full", None)


@pytest.mark.parametrize("transition", ["open", "half_open", "forced_open", "metrics_only"])
def test_the_fast_path_checks_the_circuit_before_the_slots(calm, transition):
    """A call that the open circuit refuses gets that reason, also if the bulkhead is full."""
    FastPaths(calm).check_out(0.1)
    for _ in range(2):
        calm.enter(0.1, Waiter())
    calm.set_state(0.2, transition)
    assert FastPaths(calm).check_out(0.3) == 0


def test_preview_of_an_open_circuit_refuses_on_the_fast_path(gate):
    """With the time left as ``retry_after``; once a probe is due, the slow path decides."""
    quick = FastPaths(gate)
    trip(gate)
    gate.refresh(0)
    waits = [quick.preview(now).retry_after for now in (0.25, 0.5, 0.25)]
    assert (waits, gate.last, gate.rejected) == ([4.75, 4.5, 4.5], 0.5, {"circuit_open": 3})
    assert quick.preview(5) is None
    for hand in ("half_open", "forced_open", "reset"):
        gate.set_state(0.6, hand)
        assert quick.preview(0.7) is None
    assert gate.rejected == {"circuit_open": 3}


def test_pending_successes_are_counted_one_by_one(calm):
    """However many before anybody writes them down."""
    for _ in range(3):
        assert FastPaths(calm).ends(0.1, FastPaths(calm).begins(0.1))
    calm.refresh(0.1)
    assert calm.breaker.succeeded == 3


def test_the_fast_paths_end_no_ticket_twice_and_no_unknown_one(calm):
    """Such a ticket or slot takes the slow path, which changes nothing."""
    slot, ticket = FastPaths(calm).check_out(0.1), FastPaths(calm).begins(0.1)
    assert FastPaths(calm).ends(0.1, ticket)
    assert not FastPaths(calm).ends(0.1, ticket)
    assert not FastPaths(calm).ends(0.1, ticket + 1)
    assert FastPaths(calm).checks_in(0.1, slot)
    assert not FastPaths(calm).checks_in(0.1, slot)
    assert not FastPaths(calm).checks_in(0.1, slot + 1)
    assert (calm.bulkhead.taken, calm.breaker.pending_successes) == (1, 1)


def test_a_late_success_takes_the_slow_path(calm):
    """Also that of the last call before the transition: it decides nothing, and is counted as late."""
    ticket = FastPaths(calm).begins(0.1)
    calm.set_state(0.2, "reset")
    assert ticket == calm.breaker.generation
    assert not FastPaths(calm).ends(0.3, ticket)
    calm.end(0.3, ticket, S)
    assert calm.breaker.late == 1


def test_a_probes_connection_is_returned_on_the_slow_path(gate):
    """Its permit must be looked at, also when the round is over and the circuit closed."""
    trip(gate)
    slot = gate.check_out(5, None)
    gate.end(5, gate.begin(5, slot), S)
    gate.refresh(5)
    assert gate.admits_all
    assert not FastPaths(gate).checks_in(5, slot)
    gate.check_in(5, slot)
    assert gate.bulkhead.taken == 0


def test_a_manual_change_of_the_circuit_has_its_time(gate):
    """Each transition is reported with its time."""
    hands = ["forced_open", "half_open", "open", "half_open", "reset", "disabled"]
    for now, hand in enumerate(hands):
        gate.set_state(now, hand)
    assert [change.at for change in gate.outbox] == [0, 1, 2, 3, 4, 5]
    assert [change.new for change in gate.outbox] == [*hands[:4], "closed", "disabled"]


@pytest.mark.parametrize("state", ["open", "half_open", "forced_open"])
def test_a_circuit_that_is_opened_by_hand_dismisses_the_queue(gate, state):
    """As one that opens by itself."""
    for _ in range(2):
        gate.enter(0, None)
    waiter = Waiter()
    gate.enter(0, waiter)
    gate.set_state(0, state)
    assert waiter.verdict == "dismissed"


def test_a_queue_is_standing_since_its_first_waiter_joined(gate):
    """By which later ones are hurried."""
    for _ in range(2):
        gate.enter(0, None)
    gate.enter(0.5, Waiter())
    assert gate.bulkhead.queued_since == 0.5


def test_a_slot_that_was_waited_for_is_counted_as_given_out_once(gate):
    """And refusals are counted one by one."""
    tickets = [gate.enter(0, None) for _ in range(2)]
    waiter = Waiter()
    gate.enter(0, waiter)
    for _ in range(3):
        gate.enter(0, None)
    gate.leave(0, tickets[0], S)
    gate.woken(0, waiter)
    assert (gate.admitted, gate.rejected) == (3, {"bulkhead_full": 3})


def test_an_open_circuit_refuses_on_the_fast_path_until_a_probe_is_due(gate):
    """A disabled circuit admits all calls on the fast path."""
    trip(gate)
    gate.refresh(0)
    assert gate.fast_refuse_until > 0
    gate.set_state(1, "disabled")
    gate.refresh(1)
    assert FastPaths(gate).ends(1, FastPaths(gate).begins(1))


def test_a_manual_half_open_keeps_the_failures_in_a_row():
    """A round begun by hand is judged like any other."""
    policy = BreakerPolicy(
        consecutive_failures=2,
        failure_rate_threshold=1,
        minimum_number_of_calls=9,
        permitted_calls_in_half_open_state=4,
    )
    gate = Gate(Breaker(policy, lambda: 0.5), Bulkhead(2, 2))
    gate.leave(0, gate.enter(0, None), F)
    gate.set_state(0, "half_open")
    gate.leave(0, gate.enter(0, None), F)
    assert gate.breaker.state == "open"


@pytest.mark.parametrize("later", [1.0, 10.0])
def test_a_clock_that_goes_back_reopens_no_fast_path(later):
    """A call becomes overdue at 1.0: from then on the slow path checks it, also if the clock goes back."""
    policy = BreakerPolicy(slow_call_duration_threshold=1)
    gate = Gate(Breaker(policy, lambda: 0.5), Bulkhead(5, 0))
    gate.enter(0.0, None)
    assert FastPaths(gate).begins(0.5)
    gate.adopt(later, 1)
    assert FastPaths(gate).begins(0.5) == 0


def test_a_woken_call_begins_when_it_wakes(gate):
    """Its wait in the queue is no part of its duration."""
    first, *_ = (gate.enter(0, None) for _ in range(gate.bulkhead.limit))
    waiter = Waiter()
    assert gate.enter(0, waiter) is None
    gate.leave(0.2, first, S)
    ticket = gate.woken(0.3, waiter)
    assert gate.leave(0.7, ticket, S).duration == pytest.approx(0.4)


def test_without_a_circuit_nothing_is_slow():
    """A bulkhead alone has no threshold, and looks for no overdue call."""
    gate = Gate(Breaker(None, lambda: 0.5), Bulkhead(3, 0))
    ticket = gate.enter(0, None)
    gate.refresh(10_000)
    assert not gate.breaker.overdue
    assert not gate.leave(10_000, ticket, S).slow


def test_readings_that_are_no_time_are_ignored(gate):
    """W5: before the first reading time begins at zero; the largest number is none, and one below it is."""
    gate.refresh(math.nan)
    assert gate.last == 0
    gate.refresh(1e15)
    assert gate.last == 0
    gate.refresh(1e15 - 1)
    assert gate.last == 1e15 - 1


@pytest.mark.parametrize("rank", [CRITICAL, SHEDDABLE], ids=["critical", "sheddable"])
@pytest.mark.parametrize("ends", ["woken", "abandoned"])
def test_a_slot_granted_before_all_calls_were_dropped_counts_no_longer(gate, rank, ends):
    """As when a guard is detached: the waiter that wakes then is a new call."""
    tickets, waiter = [gate.enter(0, None, rank) for _ in range(2)], Waiter()
    assert gate.enter(0, waiter, rank) is None
    gate.leave(0, tickets[0], S)
    assert (waiter.verdict, gate.bulkhead.taken) == ("granted", 2)
    gate.drop_calls_and_waiters()
    if ends == "abandoned":
        gate.abandon(0, waiter)
        assert gate.bulkhead.taken == 0
        return
    ticket = gate.woken(0, waiter)
    assert (gate.bulkhead.taken, list(gate.breaker.in_flight)) == (1, [ticket])
    gate.leave(0, ticket, S)
    assert gate.bulkhead.taken == 0


def test_a_waiter_that_was_dropped_runs_without_a_slot_once_nothing_is_enforced(gate):
    """Its granted slot counts no longer, in shadow either."""
    ticket, waiter = gate.enter(0, None), Waiter()
    gate.enter(0, None)
    gate.enter(0, waiter)
    gate.leave(0, ticket, S)
    gate.drop_calls_and_waiters()
    gate.set_mode(0, "shadow")
    number = gate.woken(0, waiter)
    assert (gate.bulkhead.taken, list(gate.outside)) == (0, [number])
    gate.leave(0, number, S)
    assert (gate.bulkhead.taken, gate.outside, gate.under_way) == (0, {}, 0)


def test_a_waiter_that_was_dropped_is_refused_if_no_slot_is_free(gate):
    """It does not wait once more."""
    tickets, waiter = [gate.enter(0, None) for _ in range(2)], Waiter()
    gate.enter(0, waiter)
    gate.drop_calls_and_waiters()
    tickets = [gate.enter(0, None) for _ in range(2)]
    assert gate.woken(0, waiter) == Refusal("bulkhead_full", None)
    assert gate.bulkhead.taken == len(tickets)


def test_an_opening_in_half_open_is_the_probe_of_a_checkout_without_a_statement(gate):
    """Its result counts in the round; in a closed circuit an opening is ordinary evidence."""
    assert gate.begin(0, OPENING) == 1
    gate.end(0, 1, S)
    trip(gate)
    slot = gate.check_out(5, None)
    _, permit = gate.checkouts[slot]
    assert gate.begin(5, OPENING) == permit
    assert gate.begin(5, OPENING) != permit, "the permit is in use"
    gate.end(5, permit, S)
    assert gate.breaker.state == "closed"
    gate.check_in(5, slot)


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["call", "checkout", "outside"])
def test_a_release_that_an_interrupt_has_cut_short_is_completed_by_the_next_move(gate, monkeypatch, kind):
    if kind == "outside":
        gate.set_mode(0, "off")
        number = gate.let_in(0, [0])
        gate.set_mode(0, "enforce")
    else:
        number = gate.enter(0, None) if kind == "call" else gate.check_out(0, None)
    leave = gate.check_in if kind == "checkout" else lambda now, ticket: gate.leave(now, ticket, S)
    with monkeypatch.context() as patch:
        patch.setattr(Bulkhead, "leave", interrupt)
        with pytest.raises(KeyboardInterrupt):
            leave(1, number)
    assert gate.bulkhead.taken == 1
    gate.refresh(2)
    assert (gate.bulkhead.taken, gate.releasing) == (0, None)
    leave(3, number)
    assert gate.bulkhead.taken == 0


@pytest.mark.parametrize("overdue", [False, True])
def test_a_release_that_was_interrupted_before_it_began_is_repeated_by_its_caller(gate, monkeypatch, overdue):
    """No other move gives the slot of a call back that is still in flight."""
    ticket, slot = gate.enter(0, None), gate.check_out(0, None)
    now = 100 if overdue else 1
    with monkeypatch.context() as patch:
        patch.setattr(Breaker, "_count_outcome", interrupt)
        patch.setattr(Breaker, "end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            gate.leave(now, ticket, S)
    gate.refresh(now)
    assert (gate.bulkhead.taken, gate.releasing) == (2, None)
    gate.leave(now, ticket, S)
    assert gate.bulkhead.taken == 1
    gate.releasing = -slot
    gate.refresh(now)
    assert (gate.bulkhead.taken, gate.releasing) == (1, None)
    gate.check_in(now, slot)
    assert gate.bulkhead.taken == 0


def test_the_rules_are_evaluated_again_when_the_circuit_of_a_compartment_has_opened():
    """Its failures alone are too few for a verdict; with its circuit open they are the cause of an outage."""
    own = Breaker(BreakerPolicy(), lambda: 0.5)
    gate = Gate(Breaker(BreakerPolicy(slow_call_duration_threshold=1), lambda: 0.5), Bulkhead(2, 2))
    parts = [gate.add_workload(0.0, circuit) for circuit in (own, Breaker(BreakerPolicy(), lambda: 0.5))]
    for part in parts:
        gate.breaker.caller_workload = part
        gate.leave(1.0, gate.enter(1.0, None), F)
    own.open(2.0)
    gate.reevaluate(2.0)
    assert (gate.last, gate.breaker.state) == (2.0, "open")
    assert drain(gate) == ["open"]


def test_callers_that_waited_and_those_that_waited_in_vain_are_counted(gate):
    """By the queue, for the snapshot: of three callers two join, and one of them is too late."""
    tickets, waiters = [gate.enter(0, None) for _ in range(2)], [Waiter() for _ in range(3)]
    for waiter in waiters:
        gate.enter(0, waiter)
    assert (gate.bulkhead.waits, gate.bulkhead.timeouts) == (2, 0)
    gate.leave(0.1, tickets[0], S)
    gate.woken(0.1, waiters[0])
    gate.woken(0.1, waiters[1])
    assert (gate.bulkhead.waits, gate.bulkhead.timeouts) == (2, 1)
    late = Waiter()
    gate.enter(0.2, late)
    gate.woken(0.2, late)
    assert (gate.bulkhead.waits, gate.bulkhead.timeouts) == (3, 2)


def test_a_waiter_that_is_shed_is_not_counted_as_a_timeout(gate):
    """Three critical callers fill the queue: the sheddable one loses its place, and the last one is late."""
    for _ in range(2):
        gate.enter(0, None)
    gate.enter(0, sheddable := Waiter(), SHEDDABLE)
    for _ in range(2):
        gate.enter(0, last := Waiter())
    assert gate.woken(0, sheddable) == Refusal("shed", None)
    assert (gate.bulkhead.waits, gate.bulkhead.timeouts) == (3, 0)
    assert gate.woken(0, last) == Refusal("queue_timeout", None)
    assert gate.bulkhead.timeouts == 1


@pytest.mark.parametrize("rank", [CRITICAL, SHEDDABLE], ids=["critical", "sheddable"])
def test_a_woken_caller_learns_its_number_from_held_too(gate, rank):
    """An interrupt may prevent the method from returning it."""
    for check_in, woken, take in (
        (gate.check_in, gate.woken_checkout, gate.check_out),
        (lambda now, ticket: gate.leave(now, ticket, S), gate.woken, gate.enter),
    ):
        first, second = (take(0, None, rank) for _ in range(2))
        waiter, held = Waiter(), [0]
        take(0, waiter, rank)
        check_in(0, first)
        assert woken(0, waiter, held=held) == held[0] > second
        check_in(0, held[0])
        check_in(0, second)
    assert gate.bulkhead.taken == 0


def test_a_transition_made_for_others_names_its_cause(gate):
    """A fleet, or the compartments that take a circuit over; without a cause it was a person."""
    for transition, cause in (("open", "fleet"), ("reset", "divided")):
        gate.set_state(0, transition, cause)
    gate.set_state(0, "open")
    gate.set_state(0, "reset")
    assert [change.cause for change in gate.outbox] == ["fleet", "divided", "manual", "manual"]


def test_an_opening_in_half_open_without_a_probes_checkout_is_a_late_call(gate):
    """There is no permit to use, so it is no probe and decides nothing."""
    gate.set_state(0, "half_open")
    ticket = gate.begin(0, OPENING)
    assert ticket > 0
    gate.end(0, ticket, S)
    assert gate.breaker.state == "half_open"
    assert gate.breaker.round.calls == 0


def test_a_lease_that_has_expired_before_its_reservation_is_used_is_not_used(gate):
    """Its round is over: the request's call is admitted anew, and is the only probe of the next round."""
    trip(gate)
    book = reserved(gate, now=5)
    permit = gate.checkouts[book[gate][1]][1]
    assert permit in gate.breaker.permits
    gate.refresh(8)  # the permit of 3 s ends: the round has failed
    assert gate.breaker.state == "open"
    ticket = gate.take_over(13, book, checkout=False)
    assert gate.breaker.state == "half_open"
    assert list(gate.breaker.permits) == [ticket] != [permit]
    gate.leave(13, ticket, S)
    assert (gate.breaker.state, gate.bulkhead.taken, gate.breaker.in_flight) == ("closed", 0, {})


def test_dropping_twice_still_tells_old_waiters_from_new_ones(gate):
    """A waiter of the first time has no slot of the third."""
    ticket, waiter = gate.enter(0, None), Waiter()
    gate.enter(0, None)
    gate.enter(0, waiter)
    gate.leave(0, ticket, S)
    for _ in range(2):
        gate.drop_calls_and_waiters()
    for _ in range(2):
        gate.enter(0, None)
    assert gate.woken(0, waiter) == Refusal("bulkhead_full", None)
    assert gate.bulkhead.taken == 2


def test_the_first_probe_needs_no_second_lease(gate):
    """Its reservation has the only one."""
    gate.set_state(0, "half_open")
    book = reserved(gate)
    assert list(gate.breaker.permits) == [1]
    assert gate.take_over(1, book, checkout=False) == 1


def test_a_reservation_whose_lease_has_expired_is_abandoned_and_has_not_succeeded(gate):
    trip(gate)
    book = reserved(gate, now=5)
    gate.take_over(13, book, checkout=False)
    assert (gate.breaker.abandoned, gate.breaker.succeeded, gate.breaker.failed) == (1, 0, 1)


def test_a_healthy_workloads_caller_waits_in_half_open(gate):
    """Its call is no probe. Other callers do not wait."""
    part = gate.add_workload(0, Breaker(BreakerPolicy(), lambda: 0.5))
    for _ in range(2):
        gate.enter(0, None)
    gate.breaker.open(0, "failure_rate")
    gate.preview(5)
    assert gate.breaker.state == "half_open"
    assert gate.enter(5, Waiter()) == Refusal("bulkhead_full", None)
    gate.breaker.caller_workload = part
    assert gate.enter(5, Waiter()) is None


def test_a_lesser_caller_whose_time_is_up_while_others_wait_is_shed(gate):
    """It did not get a slot because of them, and is no timeout."""
    for _ in range(2):
        gate.enter(0, None)
    gate.enter(0, sheddable := Waiter(), SHEDDABLE)
    gate.enter(0, Waiter())
    assert sheddable.verdict is None
    assert gate.woken(0, sheddable) == Refusal("shed", None)
    assert (gate.bulkhead.waits, gate.bulkhead.timeouts) == (2, 0)


def test_in_shadow_a_refusal_that_was_decided_elsewhere_is_reported(gate):
    gate.set_mode(0, "shadow")
    refusal = gate.refuse(0, "bulkhead_full")
    assert gate.outbox == [refusal] == [Refusal("bulkhead_full", None)]


def test_a_pool_that_is_no_longer_watched_does_not_stall():
    """Its overdue calls were a stall to come when the watch ended."""
    policy = BreakerPolicy(minimum_number_of_calls=100, permitted_calls_in_half_open_state=1)
    gate = Gate(Breaker(policy, lambda: 0.5), Bulkhead(2, 0))
    gate.watch_for_stalls(0, on=True)
    slots = [gate.check_out(0, None) for _ in range(2)]
    for slot in slots:
        gate.begin(0, slot)
    gate.refresh(1.5)
    gate.watch_for_stalls(1.6, on=False)
    gate.end(3, gate.begin(3, slots[0]), F)
    assert gate.breaker.state == "closed"


# --- a release that an interrupt cuts short ------------------------------------------------------


class Interrupted(Bulkhead):
    """A bulkhead in whose next release an interrupt comes, before it has changed anything."""

    __slots__ = ("armed",)

    def leave(self):
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt
        return super().leave()


@pytest.fixture
def interrupted(gate):
    """A gate of three slots, in which a release can be cut short."""
    gate.bulkhead = Interrupted(3, 2)
    gate.bulkhead.armed = False
    return gate


def cut_short(gate, move, *args, **options):
    gate.bulkhead.armed = True
    with pytest.raises(KeyboardInterrupt):
        move(*args, **options)
    assert not gate.bulkhead.armed


def test_an_interrupted_release_of_an_adopted_slot_is_completed(interrupted):
    gate = interrupted
    gate.bulkhead.taken = gate.adopted = 1
    assert gate.enter(0, None) == 1
    cut_short(gate, gate.check_in, 0, 0)
    gate.refresh(0)
    assert (gate.bulkhead.taken, gate.adopted, gate.releasing) == (1, 0, None)


def test_an_interrupted_release_of_a_reservation_that_is_refused_is_completed(interrupted):
    gate = interrupted
    book = reserved(gate)
    assert book[gate][1] == gate.enter(0, None) == 1, "the slot's number is the other call's ticket"
    gate.set_state(0, "forced_open")
    cut_short(gate, gate.take_over, 0, book, checkout=True)
    gate.refresh(0)
    assert (gate.bulkhead.taken, gate.checkouts, gate.releasing) == (1, {}, None)


def test_an_interrupted_release_of_a_granted_slot_is_completed(interrupted):
    gate, waiter = interrupted, Waiter()
    tickets = [gate.enter(0, None) for _ in range(3)]
    assert gate.enter(0, waiter) is None
    gate.leave(0, tickets[2], S)
    assert waiter.verdict == "granted"
    cut_short(gate, gate.abandon, 0, waiter)
    gate.refresh(0)
    assert (gate.bulkhead.taken, gate.releasing) == (2, None)


def test_a_release_that_had_not_begun_is_left_to_its_caller(gate):
    """The call still runs outside, in a slot, and ends later."""
    gate.set_mode(0, "off")
    number = gate.let_in(0, [0])
    gate.set_mode(0, "enforce")
    assert (gate.bulkhead.taken, gate.outside) == (1, {number: None})
    gate.releasing = number
    gate.refresh(0)
    assert (gate.bulkhead.taken, gate.releasing, gate.outside) == (1, None, {number: None})
    gate.leave(0, number, S)
    assert (gate.bulkhead.taken, gate.outside) == (0, {})


def test_a_completed_release_counts_for_the_class_of_its_call(gate):
    ticket = gate.enter(0, None, SHEDDABLE)
    ranks = gate.bulkhead.ranks
    gate.breaker.end(ticket, S, 0)
    gate.releasing = ticket
    gate.refresh(0)
    assert (gate.bulkhead.taken, ranks.held, ranks.rank_by_number) == (0, [0] * len(CLASSES), {})


@pytest.mark.parametrize("reading", [-math.inf, math.nan, 1e16, math.inf])
def test_a_clock_whose_first_reading_is_no_time_begins_with_zero(gate, reading):
    assert gate.refresh(reading) == gate.last == 0.0
    assert gate.refresh(5) == 5


def test_a_clock_of_other_numbers_closes_the_fast_paths_for_good(gate):
    """Their comparison runs Python code, between two steps of the fast path."""
    gate.fast = True
    gate.refresh(1.0)
    assert gate.fast_leave_until > 1.0
    gate.refresh(Fraction(2))
    gate.refresh(3.0)
    assert (gate.fast_enter_until, gate.fast_leave_until, gate.admits_until) == (-math.inf,) * 3


CLOSED_PATHS = (-math.inf,) * 4


def fast_paths(gate):
    return gate.admits_until, gate.fast_enter_until, gate.fast_leave_until, gate.fast_refuse_until


def test_the_fast_paths_open_again_when_the_move_has_ended_that_is_not_a_signal_handlers(gate):
    """A move within another one leaves them closed: that one goes on."""
    gate.fast = True
    gate.refresh(1)
    assert fast_paths(gate) != CLOSED_PATHS
    gate.nested = True
    gate.refresh(1)
    assert fast_paths(gate) == CLOSED_PATHS
    gate.nested = False
    gate.refresh(1)
    assert fast_paths(gate) != CLOSED_PATHS


def test_the_fast_paths_are_closed_while_the_guard_is_off_and_while_calls_run_outside(gate):
    """Such a call ends in another way."""
    gate.fast = True
    gate.refresh(1)
    assert fast_paths(gate) != CLOSED_PATHS
    gate.set_mode(1, "off")
    gate.refresh(1)
    assert fast_paths(gate) == CLOSED_PATHS
    number = gate.let_in(1, [0])
    for mode in ("shadow", "enforce"):
        gate.set_mode(1, mode)
        gate.refresh(1)
        assert fast_paths(gate) == CLOSED_PATHS
    gate.leave(1, number, S)
    gate.refresh(1)
    assert fast_paths(gate) != CLOSED_PATHS


def test_a_healthy_workloads_caller_stays_in_the_queue_when_others_open_the_circuit(gate):
    part = gate.add_workload(0, Breaker(BreakerPolicy(), lambda: 0.5))
    for _ in range(2):
        gate.enter(0, None)
    healthy, other = Waiter(), Waiter()
    for waiter, workload in ((healthy, part), (other, None)):
        gate.breaker.caller_workload = workload
        assert gate.enter(0, waiter) is None
    gate.breaker.open(0, "failure_rate")
    gate.refresh(0)
    assert (healthy.verdict, other.verdict) == (None, "dismissed")
    assert list(gate.bulkhead.queue) == [healthy]
