"""A database that is slow after its recovery, with and without a ramp, in fake time."""

from __future__ import annotations

import pytest

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker
from guardrails._core.bulkhead import Bulkhead
from guardrails._core.gate import Gate
from support.simulated_database import Database

SLOTS, USERS = 20, 100
BACK = 20.0


def pace(running, database):
    """Eight processors, 50 calls a second each; the disk makes a call ten times as long, and has a queue."""
    cold, crowd = 1 - database.warmth, max(0, running - 4) / 4
    return 50 * min(running, 8) / (1 + 9 * cold) / (1 + cold * crowd**2)


def after_an_outage(ramp, seed, *, warm):
    """The database is down from 3 s to 20 s; returns it at 40 s."""
    gate = Gate(Breaker(BreakerPolicy(recovery_ramp=ramp), lambda: 0.5), Bulkhead(SLOTS, 0))
    database = Database(gate, USERS, pace, seed=seed)
    database.warming = 0.01
    database.run(3)
    database.crash()
    database.run(BACK)
    assert gate.breaker.state == "open"
    database.come_back()
    database.warmth = float(warm)
    database.run(BACK + 20)
    return database


def reopened(database):
    return [at for at in database.openings if at > BACK]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_ramp_lets_a_cold_database_recover(seed):
    """Twenty concurrent calls exceed the timeout, so it learns nothing and fails again and again."""
    without, ramped = (after_an_outage(ramp, seed, warm=False) for ramp in (0, 5))
    assert len(reopened(without)) >= 3
    assert reopened(ramped) == []
    seconds = (BACK, BACK + 10)
    assert ramped.served_in(*seconds) > 100 * without.served_in(*seconds)
    assert ramped.served_in(BACK + 15, BACK + 20) > 5 * 0.9 * 400


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_ramp_costs_a_warm_database_a_part_of_its_first_seconds(seed):
    """Eight concurrent calls are all that it can use. They are usable after 1.5 s of the ramp's five."""
    without, ramped = (after_an_outage(ramp, seed, warm=True) for ramp in (0, 5))
    assert reopened(ramped) == []
    lost = without.served_in(BACK, BACK + 5) - ramped.served_in(BACK, BACK + 5)
    assert 0 < lost < 0.5 * 1.5 * 400
    late = BACK + 5, BACK + 20
    assert ramped.served_in(*late) > 0.98 * without.served_in(*late)
