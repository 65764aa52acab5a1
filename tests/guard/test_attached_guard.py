"""What a guard asks of the pool that it is attached to."""

from __future__ import annotations

import asyncio
import logging
import random
import time

import pytest

from guardrails import ConfigurationError, RejectedError
from guardrails._guard.compartments import fixed_cores
from guardrails._guard.guard import attach, guard_of_settings, note_orders
from support.fake_pool import FakePool


class Upkeep:
    """Opens two connections in no time, and keeps what it was asked for."""

    lease = None  # it is in no fleet

    def __init__(self):
        self.asked = []
        self.lease = None

    def warm_up(self, seconds):
        self.asked.append(("threads", seconds))
        return 2

    async def warm_up_async(self, seconds):
        self.asked.append(("loop", seconds))
        return 2

    def resized(self):
        self.asked.append("resized")


@pytest.fixture
def upkeep():
    return Upkeep()


@pytest.fixture
def db(make_guard, upkeep):
    guard = make_guard(max_concurrent_calls=4)
    attach(guard, FakePool(upkeep))
    return guard


def test_a_pool_is_warmed_up_within_the_given_time(db, upkeep):
    assert (db.warm_up(), asyncio.run(db.warm_up_async(2.5))) == (2, 2)
    assert upkeep.asked == [("threads", 30.0), ("loop", 2.5)]


@pytest.mark.parametrize("seconds", [0, -1, "5", None])
def test_a_time_that_is_none_warms_nothing_up(db, upkeep, seconds):
    with pytest.raises(ConfigurationError, match="guard 'db': warm_up: timeout must be"):
        db.warm_up(seconds)
    with pytest.raises(ConfigurationError, match="guard 'db': warm_up_async: timeout must be"):
        asyncio.run(db.warm_up_async(seconds))
    assert upkeep.asked == []


def test_only_the_guard_that_has_the_pool_warms_it_up(db, make_guard):
    """Not a compartment, a guard without a pool, or one whose pool looks after its connections itself."""
    foreign = make_guard("foreign")
    attach(foreign, FakePool())
    for guard in (db.compartment("part"), make_guard("plain"), foreign):
        with pytest.raises(ConfigurationError, match=f"guard {guard.name!r} has no pool to warm up"):
            guard.warm_up()
        with pytest.raises(ConfigurationError, match=r"call warm_up_async\(\) on the guard that protect"):
            asyncio.run(guard.warm_up_async())


def test_the_pool_is_told_of_the_guard_s_new_number_of_slots_and_of_no_compartment_s(db, upkeep):
    part = db.compartment("part", max_concurrent_calls=2)
    part.resize(3)
    assert upkeep.asked == []
    db.resize(2)
    assert upkeep.asked == ["resized"]


def test_a_lease_bounds_the_new_number_of_slots(db, upkeep):
    class Lease:
        def resize(self, ceiling):
            return min(ceiling, 2)

    upkeep.lease = Lease()
    db.resize(4)
    assert (db.snapshot().max_concurrent_calls, upkeep.asked) == (2, ["resized"])


def test_a_pool_that_looks_after_itself_is_told_nothing(make_guard):
    guard = make_guard(max_concurrent_calls=4)
    attach(guard, FakePool())
    guard.resize(2)
    assert guard.snapshot().max_concurrent_calls == 2


def test_the_log_says_what_protects_a_pool(make_guard, caplog):
    caplog.set_level(logging.INFO, "guardrails")
    attach(make_guard("plain", max_concurrent_calls=4, breaker=None), FakePool())
    attach(make_guard("db", max_concurrent_calls=4, timeout=2), FakePool())
    attach(make_guard("s", max_concurrent_calls=4, breaker=None, mode="shadow"), FakePool())
    attach(make_guard("o", max_concurrent_calls=4, breaker=None, mode="off"), FakePool())
    shadow = "is in shadow and only counts what it would refuse and stop"
    assert caplog.messages == [
        "guard 'plain' protects: 4 slots, no timeout, no circuit",
        "guard 'db' protects: 4 slots, timeout 2 s, the circuit opens at 50% failed or 50% slower than 1 s",
        f"guard 's' {shadow}: 4 slots, no timeout, no circuit",
        "guard 'o' is off: 4 slots, no timeout, no circuit",
    ]


def test_a_timeout_that_looks_like_milliseconds_is_a_warning(make_guard, caplog):
    caplog.set_level(logging.WARNING, "guardrails")
    attach(make_guard("short", max_concurrent_calls=4, timeout=499), FakePool())
    assert caplog.messages == []
    attach(make_guard("long", max_concurrent_calls=4, timeout=2000), FakePool())
    assert caplog.messages == ["guard 'long': its timeout is 2000 seconds; are these milliseconds?"]


@pytest.mark.parametrize("listened", [False, True])
def test_refusals_by_the_parent_are_in_the_compartment_s_snapshot(make_guard, listened):
    listeners = [lambda event: None] if listened else []
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0, listeners=listeners)
    part, other = guard.compartment("part"), guard.compartment("other")
    with guard.call():
        for _ in range(3):
            with pytest.raises(RejectedError):
                part.run(int)
    assert (guard.snapshot().rejected, part.snapshot().rejected) == ({"bulkhead_full": 3}, {})
    found = [each.snapshot().rejected_by_parent for each in (guard, part, other)]
    assert found == [0, 3, 0]


def test_the_orders_of_a_fleet_are_in_the_snapshot(db):
    order = {"order": "shadow", "by": "ann@host", "at": "2026-11-30T03:00:00Z"}
    assert db.snapshot().orders == {}
    note_orders(db, {"mode": order})
    assert db.snapshot().orders == {"mode": order}


def test_the_cores_of_compartments_with_a_number_of_slots_are_told_apart(db):
    """A number of slots that was given does not follow the guard's, so more connections would not help it."""
    fixed, _ = db.compartment("fixed", max_concurrent_calls=2), db.compartment("follows")
    assert fixed_cores(db) == [fixed.call_settings.gates[0].core]


def test_a_guard_of_given_settings_heeds_no_variable(monkeypatch):
    monkeypatch.setenv("GUARDRAILS_NIGHT_TIMEOUT", "7")
    monkeypatch.setenv("GUARDRAILS_NIGHT_MAX_WAIT_DURATION", "7")
    settings = {"max_wait_duration": 0.0, "max_waiting": None, "timeout": 3.0, "breaker": None}
    settings |= {"listeners": (), "clock": time.monotonic, "random": random.random}
    guard = guard_of_settings("night", 2, **settings)
    assert (guard.timeout, guard.call_settings.gates[0].max_wait) == (3.0, 0.0)
