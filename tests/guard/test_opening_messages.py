"""The log's message on an opened circuit: correct and complete."""

from __future__ import annotations

import pytest

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker, Transition
from guardrails._core.bulkhead import Bulkhead
from guardrails._core.gate import Gate
from guardrails._core.window import SLOW
from guardrails._pool.holders import Holder, advice, busiest, cause_of
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


def test_what_waits_on_purpose_is_no_reason_for_an_open_circuit():
    """A subscriber that is out for hours says nothing about the calls that fail; nor do two of them."""
    waiting = held(7200.0, "waiting", "shop.py:9 in listen")
    words = "1 of 10 slots in a statement for up to 1.5 s, shop.py:1 in load"
    assert busiest([waiting, waiting, held(1.5)], 3, 10) == words
    assert busiest([waiting, waiting], 2, 10) == ""


@pytest.mark.parametrize(
    ("seconds", "cause"),
    [([0.0, 0.1, 0.2], "busy"), ([0.1, 0.2, 1.0], "busy"), ([0.1, 1.0, 3.0], "slow_calls"), ([0.1], "free")],
    ids=str,
)
def test_only_statements_that_take_long_are_called_slow(seconds, cause):
    """A burst on a small pool has statements on all connections, too: a larger pool would help it."""
    assert cause_of([held(each) for each in seconds], 3, 1.0) == cause


def test_holders_that_wait_on_purpose_are_a_cause_of_their_own():
    """No statement is slow, and the pool is empty all the same."""
    holders = [held(50.0, "waiting"), held(60.0, "waiting"), held(2.0)]
    assert cause_of(holders, 3, 1.0) == "waiting"


def test_advice_for_redis_speaks_of_no_locks():
    """No command of Redis waits for a lock of another session."""
    assert "locks" in advice("slow_calls", "postgresql")
    for cause in ("slow_calls", "busy"):
        assert "lock" not in advice(cause, "redis")
    assert advice("leak", "redis") == advice("leak", "postgresql")


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
def test_only_a_guard_that_enforces_says_that_it_refuses(mode):
    """In shadow the circuit opens, too, and refuses no call."""
    core = Gate(Breaker(BreakerPolicy(), lambda: 0.5), Bulkhead(20, 0))
    core.set_mode(0.0, mode)
    words = why_open(core, Transition(10.0, "closed", "open", "failure_rate", 2.0), None)
    how = "refusing for 2 s" if mode == "enforce" else "enforcing, it would refuse for 2 s"
    assert words.endswith(f"; {how}")


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
