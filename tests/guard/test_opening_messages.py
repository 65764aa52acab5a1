"""The log's message on an opened circuit: correct and complete."""

from __future__ import annotations

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker, Transition
from guardrails._core.bulkhead import Bulkhead
from guardrails._core.gate import Gate
from guardrails._core.window import SLOW
from guardrails._pool.holders import Holder, busiest
from guardrails._runtime.guard_log import why_open


def held(seconds, doing="statement", where="shop.py:1 in load", compartment=None):
    return Holder(seconds=seconds, doing=doing, where=(where,), now=(), route=None, compartment=compartment)


def test_the_age_in_the_log_is_that_of_the_holders_it_names():
    """One that has been held across other work for five minutes does not make nine statements as old."""
    holders = [held(300.0, "other_work"), *[held(1.5) for _ in range(9)]]
    assert busiest(holders, 10, 10) == "9 of 10 slots in a statement for up to 1.5 s, shop.py:1 in load"


def test_slots_whose_connection_is_being_opened_are_named_in_the_log():
    """A frozen server: a few statements hang, and all the others on their way to it."""
    words = "2 of 10 slots in a statement for up to 2.0 s, shop.py:1 in load; 8 without a connection yet"
    assert busiest([held(2.0), held(1.9)], 10, 10) == words


def test_a_call_that_has_just_failed_is_not_counted_as_a_holder():
    """Its line of code is named all the same."""
    assert busiest([held(0.01, "other_work")], 1, 10) == "such as shop.py:1 in load"


def test_a_circuit_that_opens_before_its_rate_is_reached_says_why():
    """Trouble has reached two workloads: 6 calls of 106 are overdue, and none has come back."""
    core = Gate(Breaker(BreakerPolicy(minimum_number_of_calls=5), lambda: 0.5), Bulkhead(20, 0))
    core.breaker.window.advance(10.0)
    change = Transition(10.0, "closed", "open", "slow_call_rate", 2.0)
    for marked, slow in ((100, False), (6, True)):
        for _ in range(marked):
            core.breaker.window.add(SLOW if slow else 0)
    words = "6 of 106 calls took longer than 1 s, or still do, and none has come back well since"
    assert why_open(core, change, None).startswith(words)
    for _ in range(100):
        core.breaker.window.add(SLOW)
    assert "since" not in why_open(core, change, None)
