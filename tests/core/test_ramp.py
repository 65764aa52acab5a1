"""The ramp after a recovery: how many slots are usable, when, and what ends it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker, Transition
from guardrails._core.bulkhead import Bulkhead, Waiter
from guardrails._core.criticality import CRITICAL
from guardrails._core.gate import Gate, Refusal
from guardrails._core.outcome import Outcome
from guardrails._core.ramp import Ramp

S, F, X = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED
SHEDDABLE = 0


def gate_with(slots=13, ramp=10.0, max_waiting=20, **options):
    usual = {"wait_duration_in_open_state": 1, "open_jitter": 0, "minimum_number_of_calls": 2}
    policy = BreakerPolicy(recovery_ramp=ramp, **(usual | options))
    return Gate(Breaker(policy, lambda: 0.5), Bulkhead(slots, max_waiting))


def recover(gate, now=0.0):
    """Closes the circuit by probes that pass; returns the gate."""
    gate.set_state(now, "half_open")
    for _ in range(3):
        gate.leave(now, gate.enter(now, None), S)
    assert gate.breaker.state == "closed"
    gate.outbox.clear()
    return gate


def usable(gate, now):
    gate.advance_model(now)
    return gate.bulkhead.usable


# --- the rule -----------------------------------------------------------------------------------


def test_the_usable_slots_grow_in_proportion_to_the_time():
    """From 3 to 13 slots in 10 s: one more each second."""
    ramp = Ramp(100.0, 10.0, 3)
    assert [ramp.usable(100.0 + second, 13) for second in (0, 0.9, 1, 5.5, 9.9, 10, 99)] == [
        (3, 101.0),
        (3, 101.0),
        (4, 102.0),
        (8, 106.0),
        (12, 110.0),
        (13, math.inf),
        (13, math.inf),
    ]


def test_with_fewer_slots_than_probes_every_slot_is_usable():
    """The end of the ramp is known all the same: a resize may add slots before."""
    assert Ramp(0.0, 10.0, 3).usable(1.0, 2) == (2, 10.0)
    assert Ramp(0.0, 10.0, 3).usable(1.0, 3) == (3, 10.0)


def test_a_clock_that_goes_back_takes_no_slot():
    assert Ramp(100.0, 10.0, 3).usable(50.0, 13) == (3, 101.0)


def test_a_slot_is_usable_at_its_own_time_whatever_is_rounded():
    """Two divisions that lead to the same number in theory need not do so in floating point."""
    ramp, now = Ramp(7.3, 3.3, 1), 7.3
    found = [ramp.usable(now, 30)[0]]
    while (now := ramp.usable(now, 30)[1]) < math.inf:
        found.append(ramp.usable(now, 30)[0])
    assert found == list(range(1, 31))


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.integers(1, 50),
    st.integers(0, 1000),
    st.floats(0, 1.2),
)
def test_the_next_change_is_ahead_and_adds_a_slot(since, seconds, first, limit, share):
    ramp = Ramp(since, seconds, first)
    now = since + seconds * share
    slots, changes_at = ramp.usable(now, limit)
    assert min(first, limit) <= slots <= limit
    assert changes_at > now
    if changes_at < math.inf:
        assert changes_at <= ramp.until
        assert ramp.usable(changes_at, limit)[0] > slots or changes_at == ramp.until
    else:
        assert slots == limit


# --- when it begins and ends --------------------------------------------------------------------


def test_after_passed_probes_only_as_many_calls_as_probes_are_admitted():
    gate = recover(gate_with())
    tickets = [gate.enter(0.0, None) for _ in range(4)]
    assert tickets[3] == Refusal("bulkhead_full", None)
    assert all(isinstance(ticket, int) for ticket in tickets[:3])
    assert isinstance(gate.enter(1.0, None), int)
    assert gate.enter(1.0, None).reason == "bulkhead_full"
    assert gate.bulkhead.limit == 13


def test_without_the_setting_every_slot_is_usable_at_once():
    gate = recover(gate_with(ramp=0))
    assert (gate.bulkhead.usable, gate.grows_at, gate.breaker.ramp) == (13, math.inf, None)


def test_the_ramp_ends_by_itself_and_leaves_the_fast_path_as_it_was():
    gate = recover(gate_with())
    assert gate.fast_enter_until == 1.0
    gate.refresh(10.0)
    assert gate.bulkhead.usable == 13
    assert gate.breaker.ramp is None
    assert gate.fast_enter_until > 10.0
    assert gate.grows_at == math.inf


def test_the_recovery_of_a_fleet_begins_a_ramp():
    gate = gate_with()
    gate.set_state(0.0, "open", "fleet")
    gate.set_state(1.0, "reset", "fleet")
    assert gate.bulkhead.usable == 3


@pytest.mark.parametrize("state", ["open", "half_open", "forced_open", "metrics_only"])
@pytest.mark.parametrize("cause", ["manual", "divided"])
def test_a_reset_begins_no_ramp(state, cause):
    gate = gate_with()
    gate.set_state(0.0, state)
    gate.set_state(1.0, "reset", cause)
    assert gate.bulkhead.usable == 13


@pytest.mark.parametrize(
    "transition", ["reset", "open", "half_open", "forced_open", "disabled", "metrics_only"]
)
def test_any_change_by_hand_ends_a_ramp(transition):
    gate = recover(gate_with())
    gate.set_state(2.0, transition)
    assert (gate.bulkhead.usable, gate.grows_at) == (13, math.inf)


def test_a_reset_during_a_ramp_admits_the_waiters():
    gate = recover(gate_with())
    for _ in range(3):
        gate.enter(0.0, None)
    waiter = Waiter()
    assert gate.enter(0.0, waiter) is None
    gate.set_state(0.5, "reset")
    assert waiter in gate.outbox
    assert waiter.verdict == "granted"


def test_a_circuit_that_opens_again_ends_its_ramp_and_the_next_recovery_begins_one():
    gate = recover(gate_with())
    waiters = [Waiter() for _ in range(5)]
    tickets = [gate.enter(4.0, None) for _ in range(7)]
    assert [gate.enter(4.0, waiter) for waiter in waiters] == [None] * 5
    for ticket in tickets[:2]:
        gate.leave(4.0, ticket, F)
    assert gate.breaker.state == "open"
    assert gate.bulkhead.usable == 13
    # One was granted the slot of the first failure; the others are told that the circuit is open.
    assert [waiter.verdict for waiter in waiters] == ["granted"] + ["dismissed"] * 4
    for ticket in tickets[2:]:
        gate.leave(4.0, ticket, X)
    gate.woken(4.0, waiters[0])
    assert gate.bulkhead.taken == 0
    for _ in range(3):
        gate.leave(6.0, gate.enter(6.0, None), S)
    assert gate.bulkhead.usable == 3
    assert usable(gate, 8.0) == 5


def test_a_resize_changes_what_the_ramp_leads_to():
    gate = recover(gate_with())
    gate.resize(5.0, 23)
    assert gate.bulkhead.usable == 13
    gate.resize(5.0, 2)
    assert gate.bulkhead.usable == 2
    gate.resize(5.0, 13)
    assert gate.bulkhead.usable == 8
    assert usable(gate, 10.0) == 13


def test_calls_from_before_the_recovery_keep_their_slots():
    """They are ten, three slots are usable, and nobody gets one until seven have ended."""
    gate = gate_with()
    before = [gate.enter(0.0, None) for _ in range(10)]
    gate.set_state(0.0, "open", "fleet")
    gate.set_state(0.0, "reset", "fleet")
    assert (gate.bulkhead.taken, gate.bulkhead.usable) == (10, 3)
    waiter = Waiter()
    assert gate.enter(0.0, waiter) is None
    for ticket in before[:7]:
        gate.leave(0.0, ticket, S)
        assert waiter.verdict is None
    gate.leave(0.0, before[7], S)
    assert waiter.verdict == "granted"


def test_as_many_slots_are_usable_as_a_healthy_workload_uses_at_the_recovery():
    """It is admitted by the open circuit, and the recovery of the others takes nothing from it."""
    gate = gate_with()
    gate.breaker.caller_workload = gate.add_workload(0.0, Breaker(None, lambda: 0.5))
    gate.leave(0.0, gate.enter(0.0, None), S)
    gate.set_state(0.0, "open", "fleet")
    calls = [gate.enter(0.1, None) for _ in range(6)]
    assert all(isinstance(ticket, int) for ticket in calls)
    gate.set_state(0.2, "reset", "fleet")
    assert gate.bulkhead.usable == 6


# --- waiters ------------------------------------------------------------------------------------


def test_a_waiter_gets_the_slot_that_becomes_usable():
    gate = recover(gate_with())
    for _ in range(3):
        gate.enter(0.0, None)
    first, second = Waiter(), Waiter()
    assert gate.enter(0.0, first) is gate.enter(0.0, second) is None
    gate.advance_model(0.99)
    assert first.verdict is None
    gate.advance_model(1.0)
    assert (first.verdict, second.verdict) == ("granted", None)
    assert first in gate.outbox
    gate.advance_model(2.0)
    assert second.verdict == "granted"


def test_a_caller_whose_time_is_up_takes_the_slot_that_has_become_usable():
    gate = recover(gate_with())
    for _ in range(3):
        gate.enter(0.0, None)
    waiter = Waiter()
    gate.enter(0.0, waiter)
    assert isinstance(gate.woken(1.0, waiter), int)


def test_ranks_share_the_usable_slots():
    """Of five one is kept free for calls that are more important; of thirteen it is five."""
    gate = gate_with(ramp=1.0, permitted_calls_in_half_open_state=5)
    gate.set_state(0.0, "open", "fleet")
    gate.set_state(0.0, "reset", "fleet")
    assert isinstance(gate.enter(0.0, None, CRITICAL), int)
    at_first = [isinstance(gate.enter(0.0, None, SHEDDABLE), int) for _ in range(9)]
    assert at_first == [True] * 3 + [False] * 6
    assert gate.enter(1.0, None, CRITICAL) > 0
    assert [isinstance(gate.enter(1.0, None, SHEDDABLE), int) for _ in range(9)] == [True] * 4 + [False] * 5


def test_a_waiter_of_a_rank_gets_the_slot_that_becomes_usable():
    gate = recover(gate_with())
    for _ in range(2):
        gate.enter(0.0, None, 3)
    waiter = Waiter()
    assert gate.enter(0.0, waiter, 3) is None
    gate.advance_model(1.0)
    assert waiter.verdict is None  # two of four are kept for CRITICAL calls, and two of five
    gate.advance_model(2.0)
    assert waiter.verdict == "granted"


# --- evidence -----------------------------------------------------------------------------------


def test_a_pool_stalls_during_a_ramp_when_as_many_statements_hang_as_a_round_has_probes():
    """Not every slot is usable, so they can't all hang; after two slow-call thresholds the circuit opens."""
    gate = gate_with(minimum_number_of_calls=100)
    gate.watch_for_stalls(0.0, on=True)
    gate.set_state(0.0, "open", "fleet")
    gate.set_state(0.0, "reset", "fleet")
    for second in range(3):
        slot = gate.check_out(float(second), None)
        gate.begin(float(second), slot)
    for moment in (0, 1, 2, 2.9):
        gate.refresh(float(moment))
        assert gate.breaker.state == "closed"
    gate.refresh(3.1)
    gate.refresh(4.1)
    assert gate.breaker.state == "open"
    assert [item.cause for item in gate.outbox if isinstance(item, Transition)][-1] == "stalled"


# --- shadow, off, fork --------------------------------------------------------------------------


def test_in_shadow_the_ramp_counts_what_it_would_refuse():
    gate = gate_with()
    gate.set_mode(0.0, "shadow")
    recover_in_shadow(gate)
    for _ in range(5):
        gate.let_in(0.0, [0])
    assert gate.would_reject == {"bulkhead_full": 2}
    assert gate.under_way == 5


def recover_in_shadow(gate):
    gate.set_state(0.0, "half_open")
    for _ in range(3):
        gate.leave(0.0, gate.let_in(0.0, [0]), S)
    assert gate.bulkhead.usable == 3


def test_in_shadow_a_wait_ends_when_a_slot_becomes_usable():
    """At its own time, although the next move comes later: enforcing, the call would have begun at 2 s."""
    gate = gate_with()
    gate.set_mode(0.0, "shadow")
    recover_in_shadow(gate)
    for _ in range(4):
        gate.let_in(0.0, [0])
    waiting = gate.let_in(0.5, [0], max_wait=5.0)
    refused = gate.let_in(0.6, [0], max_wait=0.3)
    gate.advance_model(4.0)
    assert gate.lateness(waiting) == pytest.approx(0.5)
    assert gate.lateness(refused) is None
    assert gate.would_reject == {"bulkhead_full": 1, "queue_timeout": 1}


def test_a_ramp_goes_on_while_the_gate_is_off():
    gate = recover(gate_with())
    gate.set_mode(1.0, "off")
    for _ in range(9):
        gate.let_in(2.0, [0])
    gate.set_mode(3.0, "enforce")
    assert (gate.bulkhead.taken, gate.bulkhead.usable) == (9, 6)
    assert gate.enter(3.0, None).reason == "bulkhead_full"


def test_a_ramp_goes_on_in_the_child_of_a_fork():
    gate = recover(gate_with())
    for _ in range(3):
        gate.enter(0.0, None)
    gate.drop_calls_and_waiters()
    assert [isinstance(gate.enter(0.5, None), int) for _ in range(4)] == [True, True, True, False]
