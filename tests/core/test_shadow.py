"""The moves of a gate that does not enforce: who has a slot in the model, what is evidence and counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker
from guardrails._core.bulkhead import CODEL_INTERVAL, CODEL_TARGET, Bulkhead, Waiter
from guardrails._core.criticality import CLASSES, CRITICAL
from guardrails._core.gate import OPENING, Gate, Refusal
from guardrails._core.outcome import Outcome
from guardrails._core.shadow import UNCOUNTED

SHEDDABLE = CLASSES.index("SHEDDABLE")
S, F, A = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED
TRIPS_AT_TWO = BreakerPolicy(
    sliding_window_type="count",
    sliding_window_size=2,
    minimum_number_of_calls=2,
    slow_call_duration_threshold=10,
    wait_duration_in_open_state=5,
    open_jitter=0,
    permitted_calls_in_half_open_state=1,
)


def new_gate(limit=1, mode="shadow", policy=TRIPS_AT_TWO):
    gate = Gate(Breaker(policy, lambda: 0.5), Bulkhead(limit, 5))
    gate.set_mode(0.0, mode)
    return gate


def let_in(gate, now, max_wait=0.0, **options):
    """Lets a call in, or with ``checkout`` a checkout; returns its number."""
    held = [0]
    number = gate.let_in(now, held, max_wait=max_wait, **options)
    assert held == [number]
    return number


def books(gate):
    """What the model says: slots taken, calls outside that run, calls outside in all."""
    return gate.bulkhead.taken, gate.unslotted, len(gate.outside)


EMPTY = (0, 0, 0)


# --- numbers --------------------------------------------------------------------------------------


def test_a_call_has_a_ticket_with_a_free_slot_and_a_number_below_all_others_without():
    gate = new_gate()
    first, second, third = (let_in(gate, 1.0) for _ in range(3))
    assert (first, second, third) == (1, UNCOUNTED - 1, UNCOUNTED - 2)
    assert gate.would_reject == {"bulkhead_full": 2}
    assert gate.rejected == {}
    assert books(gate) == (1, 2, 2)
    assert (gate.under_way, gate.highest) == (3, 3)
    for number in (first, second, third):
        gate.leave(2.0, number, S)
    assert books(gate) == EMPTY
    assert gate.breaker.succeeded == 1, "only the call with a slot is evidence"


def test_a_new_gate_enforces():
    gate = Gate(Breaker(None, lambda: 0.5), Bulkhead(1, 0))
    assert (gate.mode, gate.enforces) == ("enforce", True)


def test_a_gate_that_enforces_lets_nobody_in():
    gate = new_gate(mode="enforce")
    held = [0]
    assert gate.let_in(1.0, held) == 0
    assert (held, books(gate)) == ([0], EMPTY)


@pytest.mark.parametrize(("mode", "options"), [("off", {}), ("shadow", {"judged": False})])
def test_a_call_that_is_not_judged_takes_no_slot_and_counts_nowhere(mode, options):
    gate = new_gate(mode=mode)
    number = let_in(gate, 1.0, **options)
    assert (number, books(gate), gate.admitted) == (UNCOUNTED - 1, (0, 1, 1), 0)
    gate.leave(2.0, number, F)
    assert (books(gate), gate.would_reject, gate.breaker.failed) == (EMPTY, {}, 0)


def test_the_most_calls_at_once_and_the_longest_one_are_those_since_the_mode_was_set():
    gate = new_gate(limit=2)
    numbers = [let_in(gate, 1.0) for _ in range(3)]
    for number in numbers:
        gate.leave(4.0, number, S)
    assert (gate.highest, gate.longest) == (3, 3.0)
    gate.set_mode(5.0, "shadow")
    assert (gate.highest, gate.longest) == (3, 3.0), "it is the mode it had"
    gate.set_mode(5.0, "enforce")
    assert (gate.highest, gate.longest) == (0, 0.0)
    ticket = gate.enter(6.0, None)
    gate.leave(9.0, ticket, S)
    assert gate.longest == 0.0, "an enforcing gate has other figures for that"


# --- the wait in the model ------------------------------------------------------------------------


def test_a_call_that_would_wait_begins_in_the_model_as_the_slot_comes_free_and_ends_that_much_later():
    gate = new_gate()
    first = let_in(gate, 1.0)
    second = let_in(gate, 2.0, max_wait=5.0)
    assert gate.would_run(second)
    assert (books(gate), gate.lateness(second)) == ((1, 1, 1), 0.0)
    gate.advance_model(2.5)
    assert gate.lateness(second) == 0.5, "so far"
    gate.leave(3.0, first, S)
    assert (books(gate), gate.lateness(second)) == ((1, 0, 1), 1.0)
    gate.advance_model(3.5)
    assert gate.lateness(second) == 1.0
    gate.leave(4.0, second, S)
    assert (books(gate), gate.slots_of_ended, gate.under_way) == ((1, 0, 1), 1, 0)
    gate.advance_model(4.99)
    assert books(gate) == (1, 0, 1)
    gate.advance_model(5.0)
    assert (books(gate), gate.slots_of_ended, gate.would_reject) == (EMPTY, 0, {})
    assert gate.breaker.succeeded == 2


def test_a_call_whose_time_is_up_in_the_queue_is_refused_at_that_moment():
    gate = new_gate()
    first = let_in(gate, 1.0)
    second = let_in(gate, 1.0, max_wait=0.5, origin="a request")
    gate.outbox.clear()
    gate.advance_model(2.0)
    (late,) = gate.outbox
    assert (late.refusal, late.call.origin) == (Refusal("queue_timeout", None), "a request")
    assert (gate.would_reject, gate.bulkhead.timeouts) == ({"queue_timeout": 1}, 1)
    assert not gate.would_run(second)
    assert (gate.lateness(second), books(gate)) == (None, (1, 1, 1))
    for number in (second, first):
        gate.leave(3.0, number, S)
    assert books(gate) == EMPTY


@pytest.mark.parametrize(("budget", "reason"), [(0.2, "deadline_spent"), (0.5, "queue_timeout")])
def test_the_time_a_caller_has_left_bounds_its_wait(budget, reason):
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=0.5, budget=budget)
    gate.advance_model(1.0 + budget - 0.01)
    assert gate.would_reject == {}
    gate.advance_model(1.0 + budget)
    assert gate.would_reject == {reason: 1}
    for number in (second, first):
        gate.leave(3.0, number, S)


def test_a_caller_that_has_every_slot_itself_is_refused_at_once():
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=0.5, waits_for_itself=True)
    assert (gate.would_reject, gate.would_run(second)) == ({"queue_timeout": 1}, False)
    for number in (second, first):
        gate.leave(3.0, number, S)
    assert books(gate) == EMPTY


def test_a_call_that_ends_while_it_would_still_wait_keeps_its_place_in_the_queue():
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 2.0, max_wait=5.0)
    gate.leave(2.5, second, F)
    assert books(gate) == (1, 0, 1)
    gate.leave(2.75, second, S)
    assert books(gate) == (1, 0, 1), "it ends once"
    gate.leave(4.0, first, S)
    assert (books(gate), gate.slots_of_ended) == ((1, 0, 1), 1), "it has its slot, 2 s late"
    gate.advance_model(4.49)
    assert (books(gate), gate.slots_of_ended) == ((1, 0, 1), 1)
    gate.advance_model(4.5)
    assert (books(gate), gate.breaker.failed) == (EMPTY, 1)


def test_a_call_that_has_ended_is_gone_once_the_model_refuses_it():
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 2.0, max_wait=0.5)
    gate.leave(2.25, second, S)
    gate.advance_model(3.0)
    assert (books(gate), gate.would_reject) == ((1, 0, 0), {"queue_timeout": 1})
    gate.leave(4.0, first, S)
    assert books(gate) == EMPTY


def test_an_opening_circuit_refuses_those_who_would_wait():
    gate = new_gate(limit=2)
    tickets = [let_in(gate, 1.0) for _ in range(2)]
    waiting = let_in(gate, 1.0, max_wait=5.0)
    for ticket in tickets:
        gate.leave(2.0, ticket, F)
    assert gate.breaker.state == "open"
    assert (gate.would_reject, gate.would_run(waiting)) == ({}, True), "it had the first slot that came free"
    gate.leave(3.0, waiting, S)
    gate.advance_model(5.0)
    assert books(gate) == EMPTY
    refused = let_in(gate, 5.5, max_wait=5.0)
    assert (gate.would_reject, gate.would_run(refused)) == ({"circuit_open": 1}, False)
    gate.leave(6.0, refused, S)


def test_the_circuit_that_opens_meanwhile_refuses_those_in_the_queue():
    gate = new_gate(limit=1)
    first, waiting = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=5.0)
    gate.set_state(2.0, "open")
    assert (gate.would_reject, gate.would_run(waiting)) == ({"circuit_open": 1}, False)
    for number in (first, waiting):
        gate.leave(3.0, number, S)
    assert books(gate) == EMPTY


def test_of_those_whose_time_is_up_at_once_the_first_to_come_is_refused_first():
    gate = new_gate()
    numbers = [let_in(gate, 1.0), *(let_in(gate, 1.0, max_wait=0.5, origin=name) for name in "abc")]
    gate.advance_model(2.0)
    assert [late.call.origin for late in gate.outbox] == ["a", "b", "c"]
    for number in numbers:
        gate.leave(3.0, number, S)


def test_of_those_that_end_at_once_in_the_model_the_first_to_come_ends_first():
    gate = new_gate(limit=2, policy=BreakerPolicy())
    holders = [let_in(gate, 1.0) for _ in range(2)]
    waiting = [let_in(gate, 1.0, max_wait=5.0) for _ in range(2)]
    for number in holders:
        gate.leave(2.0, number, S)
    for number, outcome in zip(waiting, (F, S), strict=True):
        gate.leave(3.0, number, outcome)
    assert gate.slots_of_ended == 2
    gate.advance_model(4.0)
    assert (books(gate), gate.slots_of_ended, gate.breaker.streak) == (EMPTY, 0, 0), (
        "the last one was the success"
    )


def test_of_those_that_have_ended_in_the_queue_the_first_to_get_a_slot_ends_first():
    gate = new_gate(limit=2, policy=BreakerPolicy())
    holders = [let_in(gate, 1.0) for _ in range(2)]
    waiting = [let_in(gate, 1.0, max_wait=5.0) for _ in range(2)]
    for number, outcome in zip(waiting, (F, S), strict=True):
        gate.leave(1.5, number, outcome)
    for number in holders:
        gate.leave(2.0, number, S)
    assert (books(gate), gate.slots_of_ended, gate.breaker.failed) == ((2, 0, 2), 2, 0)
    gate.advance_model(2.5)
    assert (books(gate), gate.slots_of_ended, gate.breaker.streak) == (EMPTY, 0, 0), (
        "the last one was the success"
    )


def test_an_interrupt_as_a_refused_call_leaves_the_model_is_made_good_by_the_next_move(monkeypatch):
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=0.5)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Gate, "_drop", interrupt)
        with pytest.raises(KeyboardInterrupt):
            gate.advance_model(2.0)
    assert gate.would_run(second)
    gate.advance_model(2.0)
    assert (gate.would_run(second), gate.would_reject) == (False, {"queue_timeout": 1})
    for number in (first, second):
        gate.leave(3.0, number, S)
    assert books(gate) == EMPTY


def test_a_circuit_that_opens_refuses_everyone_in_the_queue():
    gate = new_gate()
    numbers = [let_in(gate, 1.0), *(let_in(gate, 1.0, max_wait=5.0) for _ in range(3))]
    gate.set_state(2.0, "open")
    assert (gate.would_reject, list(gate.bulkhead.queue)) == ({"circuit_open": 3}, [])
    for number in numbers:
        gate.leave(3.0, number, S)
    assert books(gate) == EMPTY


def test_a_change_of_the_model_is_made_for_its_own_workload_and_not_for_that_of_the_move():
    gate = new_gate(policy=BreakerPolicy())
    part = gate.add_workload(1.0, Breaker(BreakerPolicy(), lambda: 0.5))
    mine = gate.breaker.uncompartmented
    gate.breaker.caller_workload = part
    first, second, third = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=5.0), let_in(gate, 1.0, max_wait=2.0)
    gate.breaker.caller_workload = mine
    gate.leave(2.0, first, S)
    assert gate.breaker.caller_workload is mine
    assert list(gate.breaker.workload_by_ticket.values()) == [part], "that of the call which has the slot now"
    gate.advance_model(4.0)
    assert (gate.breaker.caller_workload, gate.would_reject) == (mine, {"queue_timeout": 1})
    for number in (second, third):
        gate.leave(5.0, number, S)
    gate.advance_model(9.0)
    assert books(gate) == EMPTY


def test_a_call_that_has_waited_holds_a_slot_of_its_own_criticality():
    gate = new_gate()
    first, second = let_in(gate, 1.0, rank=SHEDDABLE), let_in(gate, 1.0, max_wait=5.0)
    gate.leave(2.0, first, S)
    held = gate.bulkhead.ranks.held
    assert (held[SHEDDABLE], held[CRITICAL], gate.noncritical_admitted) == (0, 1, 1)
    gate.end_in_model(3.0, second, F)
    assert not any(held)
    gate.leave(3.0, second, S)


def test_without_a_time_to_wait_a_full_bulkhead_refuses_at_once():
    gate = new_gate()
    numbers = [gate.let_in(1.0, [0]), gate.let_in(1.0, [0])]
    assert gate.would_reject == {"bulkhead_full": 1}
    for number in numbers:
        gate.leave(3.0, number, S)


# --- checkouts and their statements ---------------------------------------------------------------


def test_a_statement_is_evidence_on_a_connection_with_a_slot_in_the_model():
    gate = new_gate()
    inside, outside = (let_in(gate, 1.0, checkout=True) for _ in range(2))
    assert (gate.has_slot(inside), gate.has_slot(outside)) == (True, False)
    held = [0]
    ticket = gate.begin(1.0, inside, held)
    assert held == [ticket]
    assert ticket > 0
    assert gate.begin(1.0, outside, held) == UNCOUNTED
    assert held == [UNCOUNTED]
    assert gate.begin(1.0, outside) == UNCOUNTED
    assert gate.end(2.0, UNCOUNTED, F) is None
    ended = gate.end(3.5, ticket, F)
    assert (ended.duration, gate.longest) == (2.5, 2.5)
    assert gate.breaker.failed == 1
    for slot in (inside, outside):
        gate.check_in(4.0, slot)
    assert books(gate) == EMPTY


def test_the_time_of_a_statement_is_no_figure_of_a_gate_that_enforces():
    gate = new_gate(mode="enforce")
    slot = gate.check_out(1.0, None)
    gate.end(3.0, gate.begin(1.0, slot), S)
    assert gate.longest == 0.0
    gate.check_in(3.0, slot)


@pytest.mark.parametrize("slot", [0, OPENING])
def test_a_connection_older_than_the_guard_and_a_new_one_are_evidence(slot):
    gate = new_gate()
    assert gate.has_slot(0)
    ticket = gate.begin(1.0, slot)
    gate.end(2.0, ticket, F)
    assert (ticket, gate.breaker.failed) == (1, 1)


def test_off_no_statement_is_evidence():
    gate = new_gate(mode="off")
    slot = let_in(gate, 1.0, checkout=True)
    assert [gate.begin(1.0, each) for each in (slot, 0, OPENING)] == [UNCOUNTED] * 3
    assert gate.breaker.in_flight == {}
    gate.check_in(2.0, slot)
    assert books(gate) == EMPTY


def test_a_checkout_that_would_wait_is_evidence_from_its_slot_in_the_model_on():
    gate = new_gate()
    first, second = let_in(gate, 1.0, checkout=True), let_in(gate, 1.0, max_wait=5.0, checkout=True)
    assert gate.has_slot(second)
    assert gate.begin(1.0, second) == UNCOUNTED
    gate.check_in(2.0, first)
    ticket = gate.begin(2.0, second)
    gate.end(3.0, ticket, F)
    assert (ticket > 0, gate.breaker.failed) == (True, 1)
    gate.check_in(3.0, second)
    assert (books(gate), gate.slots_of_ended) == (EMPTY, 0), (
        "it ends with the real one: the pool has kept it waiting"
    )


def test_the_statements_of_a_checkout_that_would_wait_are_one_call_from_its_slot_in_the_model_on():
    gate = new_gate()
    first, second = let_in(gate, 1.0, checkout=True), let_in(gate, 1.0, max_wait=5.0, checkout=True)
    gate.check_in(2.0, first)
    for _ in range(2):
        gate.end(2.5, gate.begin(2.0, second), S, second)
    assert (gate.breaker.succeeded, gate.breaker.evidence(2.5)[0]) == (2, 0)
    gate.check_in(3.0, second)
    assert gate.breaker.evidence(3.0)[0] == 1


class Waits:
    """A checkout, as far as the model asks: when it got its connection, 0.0 before."""

    since = 0.0


def test_a_checkout_that_waits_for_the_pool_leaves_the_model_after_the_usual_time():
    """Unless it has its connection by then. The real one goes on."""
    gate = new_gate(limit=2)
    slots, holders = [let_in(gate, 1.0, checkout=True) for _ in range(2)], [Waits(), Waits()]
    for slot, holder in zip(slots, holders, strict=True):
        gate.end_early(1.0, slot, 0.5, holder)
    gate.advance_model(1.49)
    assert (books(gate), [gate.has_slot(slot) for slot in slots]) == ((2, 0, 2), [True, True])
    holders[1].since = 1.2
    gate.advance_model(1.5)
    assert (books(gate), [gate.has_slot(slot) for slot in slots]) == ((1, 1, 2), [False, True])
    for slot in slots:
        gate.check_in(3.0, slot)
    gate.advance_model(9.0)
    assert (books(gate), gate.would_reject) == (EMPTY, {})


@pytest.mark.parametrize("granted_first", [False, True])
def test_the_usual_time_of_a_checkout_that_would_wait_begins_with_its_slot_in_the_model(granted_first):
    gate = new_gate()
    first, second = let_in(gate, 1.0, checkout=True), let_in(gate, 1.0, max_wait=5.0, checkout=True)
    if granted_first:
        gate.check_in(2.0, first)
    gate.end_early(2.0, second, 0.5, Waits())
    if not granted_first:
        gate.check_in(2.0, first)
    gate.advance_model(2.49)
    assert gate.has_slot(second)
    gate.advance_model(2.5)
    assert (books(gate), gate.has_slot(second)) == ((0, 1, 1), False)
    gate.check_in(3.0, second)
    assert books(gate) == EMPTY


def test_a_checkout_that_has_left_the_model_before_its_usual_time_leaves_it_once():
    gate = new_gate()
    slot = let_in(gate, 1.0, checkout=True)
    gate.end_early(1.0, slot, 0.5, Waits())
    gate.end_in_model(1.2, slot, A, checkout=True)
    gate.advance_model(2.0)
    assert (books(gate), gate.has_slot(slot)) == ((0, 1, 1), False)
    gate.check_in(3.0, slot)
    assert books(gate) == EMPTY


@pytest.mark.parametrize("state", ["half_open", "closed"])
def test_a_probe_and_a_checkout_that_has_ended_have_no_usual_time(state):
    gate = new_gate()
    if state == "half_open":
        gate.set_state(0.0, "half_open")
    slot = let_in(gate, 1.0, checkout=True)
    if state == "closed":
        gate.check_in(1.0, slot)
    gate.end_early(1.0, slot, 0.5, Waits())
    assert (gate.events, gate.outside) == ([], {})
    gate.check_in(3.0, slot)
    assert books(gate) == EMPTY


def test_slots_given_to_calls_that_another_gate_refused_later_are_counted():
    """A call that still waits, or is not judged, had none."""
    gate = new_gate()
    outside = let_in(gate, 1.0, judged=False)
    first = let_in(gate, 1.0)
    second, third = (let_in(gate, 1.0, max_wait=5.0) for _ in range(2))
    for number, count in ((outside, 0), (third, 0), (first, 1), (second, 2)):
        gate.end_in_model(2.0, number, A, refused=True)
        assert gate.refused_elsewhere == count
    for number in (outside, first, second, third):
        gate.leave(3.0, number, S)
    assert books(gate) == EMPTY


def test_a_slot_that_a_request_has_reserved_goes_to_the_work_inside_it():
    gate = new_gate()
    first, second = let_in(gate, 1.0, checkout=True), let_in(gate, 1.0, max_wait=5.0, checkout=True)
    slots, held = {gate: (None, second)}, [0]
    assert gate.take_over(1.0, slots, held, checkout=True) == second
    assert (slots, held) == ({}, [second])
    assert gate.take_over(1.0, slots, checkout=True) is None
    for slot in (first, second):
        gate.check_in(2.0, slot)
    assert books(gate) == EMPTY


def test_work_of_a_request_that_would_have_been_refused_is_outside():
    gate = new_gate()
    first, second = (let_in(gate, 1.0, checkout=True) for _ in range(2))
    slots = {gate: (None, second)}
    number = gate.take_over(1.0, slots, checkout=False)
    assert number == UNCOUNTED - 2
    assert (slots, gate.would_reject) == ({gate: (None, second)}, {"bulkhead_full": 1})
    gate.leave(2.0, number, S)
    for slot in (first, second):
        gate.check_in(2.0, slot)
    assert books(gate) == EMPTY


# --- the end in the model, while the real call goes on --------------------------------------------


def test_a_call_that_would_be_stopped_gives_its_slot_back_at_once_and_ends_once():
    gate = new_gate()
    ticket = let_in(gate, 1.0)
    gate.end_in_model(2.0, ticket, F)
    assert (books(gate), gate.breaker.failed, gate.under_way) == ((0, 1, 1), 1, 1)
    gate.end_in_model(2.5, ticket, F)
    gate.leave(3.0, ticket, S)
    assert (books(gate), gate.breaker.failed, gate.breaker.succeeded) == (EMPTY, 1, 0)
    gate.end_in_model(4.0, ticket, F)
    assert books(gate) == EMPTY


def test_a_checkout_that_would_be_given_up_gives_its_slot_back_and_its_work_is_no_evidence():
    gate = new_gate()
    slot = let_in(gate, 1.0, checkout=True)
    gate.end_in_model(2.0, slot, A, checkout=True)
    assert (books(gate), gate.has_slot(slot)) == ((0, 1, 1), False)
    assert gate.begin(2.0, slot) == UNCOUNTED
    gate.end_in_model(2.5, slot, A, checkout=True)
    assert books(gate) == (0, 1, 1)
    gate.check_in(3.0, slot)
    assert books(gate) == EMPTY


def test_a_call_that_would_wait_leaves_the_queue_when_it_is_given_up():
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=5.0)
    gate.end_in_model(2.0, second, A)
    assert (books(gate), gate.would_run(second), list(gate.bulkhead.queue)) == ((1, 1, 1), False, [])
    gate.leave(3.0, first, S)
    gate.advance_model(30.0)
    assert (books(gate), gate.would_reject) == ((0, 1, 1), {})
    gate.leave(31.0, second, S)
    assert books(gate) == EMPTY


def test_a_call_that_has_waited_in_the_model_gives_back_the_slot_that_it_got():
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=5.0)
    gate.leave(2.0, first, S)
    gate.end_in_model(3.0, second, F)
    assert (books(gate), gate.breaker.failed) == ((0, 1, 1), 1)
    gate.leave(4.0, second, S)
    assert (books(gate), gate.slots_of_ended) == (EMPTY, 0)


@pytest.mark.parametrize("checkout", [False, True])
def test_a_checkout_that_has_waited_in_the_model_likewise(checkout):
    gate = new_gate()
    first, second = let_in(gate, 1.0, checkout=True), let_in(gate, 1.0, max_wait=5.0, checkout=True)
    gate.check_in(2.0, first)
    gate.end_in_model(3.0, second, A, checkout=checkout)
    assert (books(gate), gate.has_slot(second)) == ((0, 1, 1), False)
    gate.check_in(4.0, second)
    assert books(gate) == EMPTY


@pytest.mark.parametrize("mode", ["enforce", "off"])
def test_nothing_is_given_up_where_there_is_no_model(mode):
    gate = new_gate()
    ticket, slot = let_in(gate, 1.0), let_in(gate, 1.0, checkout=True)
    gate.set_mode(2.0, mode)
    before = books(gate)
    gate.end_in_model(3.0, ticket, F)
    gate.end_in_model(3.0, slot, A, checkout=True)
    assert books(gate) == before
    gate.leave(4.0, ticket, S)
    gate.check_in(4.0, slot)
    gate.set_mode(5.0, "enforce")
    assert books(gate) == EMPTY


def test_each_call_that_leaves_the_model_runs_on_without_a_slot():
    gate = new_gate(limit=2)
    ticket, slot = let_in(gate, 1.0), let_in(gate, 1.0, checkout=True)
    waiting = [let_in(gate, 1.0, max_wait=5.0) for _ in range(2)]
    gate.leave(2.0, ticket, S)
    other = let_in(gate, 2.0, judged=False)
    assert books(gate) == (2, 2, 3)
    gate.end_in_model(2.5, slot, A, checkout=True)
    assert books(gate) == (2, 2, 4), "the next in the queue has the slot"
    for number in waiting:
        gate.end_in_model(3.0, number, A)
    assert books(gate) == (0, 4, 4)
    gate.check_in(4.0, slot)
    for number in (*waiting, other):
        gate.leave(4.0, number, S)
    assert books(gate) == EMPTY


def test_a_probe_that_would_be_given_up_gives_its_lease_back():
    gate = new_gate()
    gate.set_state(1.0, "half_open")
    probe = let_in(gate, 2.0, checkout=True)
    assert len(gate.breaker.permits) == 1
    gate.end_in_model(3.0, probe, A, checkout=True)
    assert (gate.breaker.permits, gate.breaker.state) == ({}, "half_open")
    gate.check_in(4.0, probe)
    assert books(gate) == EMPTY


def test_calls_that_would_have_been_stopped_are_counted():
    gate = new_gate()
    gate.count_would_stop(1.0)
    gate.count_would_stop(2.0)
    assert gate.would_stop == 2


# --- switches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["enforce", "off"])
def test_the_model_ends_with_the_mode_and_those_who_would_wait_are_calls_without_a_slot(mode):
    gate = new_gate()
    first, outside = let_in(gate, 1.0), let_in(gate, 1.0, judged=False)
    running, over = (let_in(gate, 1.0, max_wait=5.0) for _ in range(2))
    gate.leave(1.5, over, S)
    gate.set_mode(2.0, mode)
    assert (list(gate.bulkhead.queue), gate.events, gate.would_reject) == ([], [], {})
    assert books(gate) == (3 if mode == "enforce" else 1, 2, 2)
    gate.advance_model(30.0)
    assert gate.would_reject == {}
    for number in (first, outside, running):
        gate.leave(31.0, number, S)
    assert books(gate) == EMPTY


@pytest.mark.parametrize("mode", ["enforce", "off"])
def test_a_call_that_has_its_slot_in_the_model_keeps_it_until_it_ends(mode):
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=5.0)
    gate.leave(2.0, first, S)
    gate.set_mode(3.0, mode)
    assert books(gate) == (1, 0, 1)
    gate.leave(4.0, second, F)
    assert (books(gate), gate.slots_of_ended, gate.breaker.failed) == (EMPTY, 0, 1), (
        "at once: nothing comes later"
    )


@pytest.mark.parametrize("mode", ["enforce", "off"])
def test_a_slot_that_the_model_holds_for_a_call_that_has_ended_is_given_back_with_the_mode(mode):
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=5.0)
    gate.leave(2.0, first, S)
    gate.leave(2.5, second, F)
    assert gate.slots_of_ended == 1
    gate.set_mode(2.75, mode)
    assert (books(gate), gate.slots_of_ended, gate.breaker.failed) == (EMPTY, 0, 1)


def test_calls_without_a_slot_hold_one_of_their_criticality_while_the_gate_enforces():
    gate = new_gate(limit=4)
    ranked, outside = let_in(gate, 1.0, rank=SHEDDABLE), let_in(gate, 1.0, judged=False)

    def held():
        return gate.bulkhead.taken, gate.bulkhead.ranks.held[SHEDDABLE], gate.bulkhead.ranks.held[CRITICAL]

    assert held() == (1, 1, 0)
    gate.set_mode(2.0, "enforce")
    assert held() == (2, 1, 1)
    gate.set_mode(3.0, "off")
    assert held() == (1, 1, 0)
    gate.set_mode(4.0, "enforce")
    gate.leave(5.0, outside, S)
    assert held() == (1, 1, 0)
    gate.leave(5.0, ranked, S)
    assert books(gate) == EMPTY


def test_real_waiters_are_let_in_when_the_gate_stops_enforcing():
    gate = new_gate(mode="enforce")
    first, waiters = gate.enter(1.0, None), [Waiter(), Waiter()]
    assert [gate.enter(1.0, waiter) for waiter in waiters] == [None, None]
    gate.set_mode(2.0, "shadow")
    assert (gate.outbox, list(gate.bulkhead.queue)) == (waiters, [])
    held = [0]
    numbers = [gate.woken(2.0, waiters[0], held=held), gate.woken(2.0, waiters[1])]
    assert (numbers, held) == ([UNCOUNTED - 1, UNCOUNTED - 2], numbers[:1])
    for number in (first, *numbers):
        gate.leave(3.0, number, S)
    assert (books(gate), gate.would_reject) == (EMPTY, {})


def test_checkouts_that_wait_are_let_in_when_the_gate_stops_enforcing():
    gate = new_gate(mode="enforce")
    first, waiters = gate.check_out(1.0, None), [Waiter(), Waiter()]
    assert [gate.check_out(1.0, waiter) for waiter in waiters] == [None, None]
    gate.set_mode(2.0, "off")
    held = [0]
    number = gate.woken_checkout(2.0, waiters[0], held=held)
    assert number == held[0] == UNCOUNTED - 1
    gate.set_mode(2.0, "enforce")
    assert gate.woken_checkout(2.0, waiters[1]) == UNCOUNTED - 2, "it was let in before"
    assert books(gate) == (3, 2, 2)
    for slot in (first, number, UNCOUNTED - 2):
        gate.check_in(3.0, slot)
    assert books(gate) == EMPTY


def test_a_waiter_that_has_its_slot_already_keeps_it_when_the_gate_stops_enforcing():
    gate = new_gate(mode="enforce")
    first, waiter = gate.enter(1.0, None), Waiter()
    assert gate.enter(1.0, waiter) is None
    gate.leave(2.0, first, S)
    gate.set_mode(2.0, "shadow")
    assert gate.woken(2.0, waiter) == 2
    assert books(gate) == (1, 0, 0)
    gate.leave(3.0, 2, S)


def test_a_waiter_that_was_let_in_holds_a_slot_if_the_gate_enforces_again_before_it_runs():
    gate = new_gate(mode="enforce")
    first, waiter = gate.enter(1.0, None), Waiter()
    assert gate.enter(1.0, waiter) is None
    gate.set_mode(2.0, "off")
    gate.set_mode(2.0, "enforce")
    number = gate.woken(2.0, waiter)
    assert (number, books(gate)) == (UNCOUNTED - 1, (2, 1, 1))
    for each in (first, number):
        gate.leave(3.0, each, S)
    assert books(gate) == EMPTY


def test_a_waiter_that_was_let_in_holds_a_slot_of_its_criticality_if_the_gate_enforces_again():
    gate = new_gate(mode="enforce")
    first, waiter = gate.enter(1.0, None, SHEDDABLE), Waiter()
    assert gate.enter(1.0, waiter) is None
    gate.set_mode(2.0, "off")
    gate.set_mode(2.0, "enforce")
    number = gate.woken(2.0, waiter)
    held = gate.bulkhead.ranks.held
    assert (gate.bulkhead.taken, held[SHEDDABLE], held[CRITICAL]) == (2, 1, 1)
    for each in (first, number):
        gate.leave(3.0, each, S)
    assert (books(gate), any(held)) == (EMPTY, False)


@pytest.mark.parametrize(("place", "queued"), [("wait_limit", False), ("catch_up", True)])
def test_an_interrupt_as_a_wait_begins_leaves_no_place_without_a_call(monkeypatch, place, queued):
    """Before the call has its number it leaves the queue; afterwards its end does that."""
    gate = new_gate()
    first, held = let_in(gate, 1.0), [0]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bulkhead if place == "wait_limit" else Gate, place, interrupt)
        with pytest.raises(KeyboardInterrupt):
            gate.let_in(1.0, held, max_wait=5.0)
    assert (len(gate.bulkhead.queue) == 1, books(gate)) == (queued, (1, 1, 1))
    for number in (first, held[0]):
        gate.leave(2.0, number, S)
    gate.advance_model(30.0)
    assert (books(gate), list(gate.bulkhead.queue)) == (EMPTY, [])


@pytest.mark.parametrize("waits", [False, True])
def test_an_interrupt_before_a_decision_leaves_nothing(monkeypatch, waits):
    gate = new_gate()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Breaker, "allow_call", interrupt)
    held = [0]
    with pytest.raises(KeyboardInterrupt):
        gate.let_in(1.0, held, max_wait=5.0 if waits else 0.0)
    assert (held, books(gate), list(gate.bulkhead.queue)) == ([0], EMPTY, [])


def test_a_fork_leaves_nothing_of_the_model():
    gate = new_gate()
    let_in(gate, 1.0)
    let_in(gate, 1.0, max_wait=5.0)
    let_in(gate, 1.0)
    gate.drop_calls_and_waiters()
    assert (books(gate), gate.events, gate.slots_of_ended) == (EMPTY, [], 0)
    gate.advance_model(30.0)
    assert gate.would_reject == {"bulkhead_full": 1}


@pytest.mark.parametrize("checkout", [False, True])
@pytest.mark.parametrize("mode", ["enforce", "off"])
def test_leaving_shadow_gives_no_slot_to_a_call_that_still_waited_in_the_model(mode, checkout):
    """The slot of a call that has ended would go to the next in the queue, which is outside already."""
    gate = new_gate(limit=1)
    end = gate.check_in if checkout else lambda now, number: gate.leave(now, number, S)
    first = let_in(gate, 1.0, checkout=checkout)
    late = let_in(gate, 1.0, max_wait=5.0, checkout=checkout)
    end(1.2, first)
    end(1.2, late) if not checkout else None
    waits = let_in(gate, 1.2, max_wait=5.0, checkout=checkout)
    gate.set_mode(1.3, mode)
    if checkout:
        end(1.4, late)
    end(1.4, waits)
    gate.set_mode(1.5, "enforce")
    assert books(gate) == EMPTY
    assert (gate.breaker.in_flight, gate.checkouts, gate.slots_of_ended) == ({}, {}, 0)


def test_a_checkout_that_waits_for_its_pool_keeps_its_slot_once_the_gate_enforces():
    """The mode may change after the pool has looked at it."""
    gate = new_gate(limit=1)
    slot = let_in(gate, 1.0, checkout=True)
    gate.set_mode(1.0, "enforce")
    gate.end_early(1.0, slot, 0.5, Waits())
    gate.advance_model(2.0)
    assert gate.bulkhead.taken == 1
    gate.check_in(3.0, slot)
    assert books(gate) == EMPTY


def test_a_slot_granted_to_a_call_that_an_interrupted_move_has_dropped_is_free_again():
    """The move had put the call outside the model, and had not taken it out of the queue yet."""
    gate = new_gate(limit=1)
    first, waits = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=5.0)
    gate.outside[waits] = None
    gate.leave(2.0, first, S)
    assert (gate.bulkhead.taken, gate.would_run(waits)) == (0, False)
    gate.leave(3.0, waits, S)
    assert gate.bulkhead.taken == 0


# --- changes at the same time, and many of them ---------------------------------------------------


def test_a_checkout_without_a_connection_ends_in_the_model_after_its_usual_time():
    """Its slot goes to the next, and the checkout itself is outside until it ends."""
    gate, holder = new_gate(limit=2), SimpleNamespace(since=0.0)
    slots = [let_in(gate, 1.0, checkout=True) for _ in range(2)]
    for slot in slots:
        gate.end_early(1.0, slot, 2.0, holder)
        assert gate.lateness(-slot) == 0.0, "it did not wait for its slot"
    gate.advance_model(2.9)
    assert books(gate) == (2, 0, 2)
    gate.advance_model(3.0)
    assert books(gate) == (0, 2, 2)
    assert (gate.would_reject, gate.breaker.succeeded, gate.under_way) == ({}, 0, 2)
    for slot in slots:
        gate.check_in(4.0, slot)
    assert books(gate) == EMPTY


def test_a_checkout_that_has_its_connection_keeps_its_slot_in_the_model():
    gate, holder = new_gate(), SimpleNamespace(since=0.0)
    slot = let_in(gate, 1.0, checkout=True)
    gate.end_early(1.0, slot, 2.0, holder)
    holder.since = 2.0
    gate.advance_model(3.0)
    assert books(gate)[:2] == (1, 0)
    gate.check_in(4.0, slot)
    assert books(gate) == EMPTY


def recovering(limit=13):
    """A circuit that closed at 0.0: three slots are usable then, and one more each second."""
    policy = BreakerPolicy(recovery_ramp=10, permitted_calls_in_half_open_state=3, open_jitter=0)
    gate = new_gate(limit=limit, policy=policy)
    gate.set_state(0.0, "half_open")
    for number in [let_in(gate, 0.0) for _ in range(3)]:
        gate.leave(0.0, number, S)
    assert (gate.breaker.state, gate.bulkhead.usable, gate.grows_at) == ("closed", 3, 1.0)
    return gate, [let_in(gate, 0.0) for _ in range(3)]


def test_a_call_whose_wait_ends_as_a_slot_becomes_usable_gets_it():
    gate, running = recovering()
    late = let_in(gate, 0.0, max_wait=1.0)
    gate.advance_model(1.0)
    assert (gate.would_reject, gate.would_run(late), gate.lateness(late)) == ({}, True, 1.0)
    for number in (*running, late):
        gate.leave(1.0, number, S)
    gate.advance_model(3.0)
    assert books(gate) == EMPTY


def test_a_growth_of_the_slots_comes_in_its_turn_between_other_changes():
    """Of three that wait, the first gets the slot of 1.0; the second gives up at 1.5, before that of 2.0."""
    gate, running = recovering()
    waits = [let_in(gate, 0.0, max_wait=wait) for wait in (5.0, 1.5, 5.0)]
    gate.advance_model(4.9)
    assert gate.would_reject == {"queue_timeout": 1}
    assert [gate.would_run(number) for number in waits] == [True, False, True]
    assert [gate.lateness(number) for number in waits] == [1.0, None, 2.0]
    for number in (*running, *waits):
        gate.leave(5.0, number, S)
    gate.advance_model(9.0)
    assert books(gate) == EMPTY


def test_a_lesser_call_waits_less_in_a_standing_queue_of_lesser_calls():
    """A critical one does not: no critical caller has waited."""
    gate = new_gate()
    first = let_in(gate, 1.0, rank=SHEDDABLE)
    second = let_in(gate, 1.0, max_wait=60.0, rank=SHEDDABLE)
    standing = 1.0 + 2 * CODEL_INTERVAL
    ranks = gate.bulkhead.ranks
    assert (ranks.any_queued_since, gate.bulkhead.queued_since) == (1.0, None)
    gate.bulkhead.served = 10**6  # so that the queue has room
    third = let_in(gate, standing, max_wait=60.0, rank=SHEDDABLE)
    assert gate.outside[third].due == standing + CODEL_TARGET
    for number in (first, second, third):
        gate.leave(standing, number, S)
    gate.advance_model(standing + 100)
    assert books(gate) == EMPTY


@pytest.mark.parametrize("options", [{}, {"refused": True}])
def test_a_refusal_elsewhere_is_counted_for_the_first_call_that_had_a_slot(options):
    """And an end for another reason is not counted."""
    gate = new_gate(limit=0)
    number = let_in(gate, 1.0, max_wait=5.0)
    gate.resize(2.0, 1)
    assert gate.outside[number].inner == 1
    gate.end_in_model(3.0, number, A, **options)
    assert gate.refused_elsewhere == len(options)
    gate.leave(4.0, number, S)
    assert books(gate) == EMPTY


def test_zero_is_the_number_of_no_call():
    gate = new_gate()
    assert not gate.would_run(0)
    gate.end_in_model(1.0, 0, A, refused=True)
    assert gate.refused_elsewhere == 0


def test_a_caller_that_was_let_in_and_runs_when_the_gate_enforces_again_holds_a_slot():
    """One more than the others have, as a critical call: its own class has not waited in vain."""
    gate, waiter = new_gate(limit=2, mode="enforce"), Waiter()
    tickets = [gate.enter(1.0, None) for _ in range(2)]
    assert gate.enter(1.0, waiter, SHEDDABLE) is None
    for mode in ("shadow", "enforce"):
        gate.set_mode(1.0, mode)
    number = gate.woken(1.0, waiter)
    assert number < UNCOUNTED
    assert (gate.bulkhead.taken, gate.bulkhead.ranks.held[CRITICAL]) == (3, 3)
    for each in (*tickets, number):
        gate.leave(2.0, each, S)
    assert (books(gate), gate.bulkhead.ranks.held) == (EMPTY, [0] * len(CLASSES))


def test_a_call_that_has_left_the_queue_is_dropped_without_a_refusal():
    """An interrupt came after it had left; the next move ends its wait in the model."""
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=2.0)
    gate.bulkhead.withdraw(gate.outside[second])
    gate.advance_model(4.0)
    assert (gate.would_reject, gate.outside) == ({}, {second: None})
    for number in (first, second):
        gate.leave(5.0, number, S)
    assert books(gate) == EMPTY


@pytest.mark.parametrize("reading", [1e16, float("nan"), 0.5])
def test_a_reading_of_the_clock_that_is_ignored_ends_no_wait(reading):
    gate = new_gate()
    first, second = let_in(gate, 1.0), let_in(gate, 1.0, max_wait=2.0)
    gate.advance_model(reading)
    assert gate.would_run(second)
    gate.advance_model(3.0)
    assert not gate.would_run(second)
    for number in (first, second):
        gate.leave(5.0, number, S)
    assert books(gate) == EMPTY
