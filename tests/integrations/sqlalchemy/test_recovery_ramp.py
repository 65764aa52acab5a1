"""A pool after the recovery of its server: its connections are given out one after the other."""

from __future__ import annotations

import contextlib
import time

import pytest
from sqlalchemy.exc import DBAPIError

from guardrails import BreakerPolicy, CircuitOpenError
from support.sql_lab import drivers, lab_with, on_postgres

lab = lab_with(drivers())

RAMP = 1.0
FULL = "do $$ begin raise exception 'disk full' using errcode = '53100'; end $$"
POLICY = BreakerPolicy(
    recovery_ramp=RAMP,
    minimum_number_of_calls=1,
    wait_duration_in_open_state=0.05,
    permitted_calls_in_half_open_state=1,
    slow_call_duration_threshold=20,
)


@on_postgres
def test_connections_become_usable_one_after_the_other(lab):
    """Three callers at once, who keep their connections: two wait until a slot becomes usable."""
    events = []
    options = {"breaker": POLICY, "max_wait_duration": 20, "listeners": [events.append]}
    guard = lab.protect(pool_size=3, max_overflow=0, guard=options)
    lab.connect()
    with pytest.raises(DBAPIError):
        lab.query(FULL)
    assert guard.state == "open"
    lab.until(lambda: recovered(lab, guard), "the circuit is closed")
    closed_at = next(event.at for event in events if getattr(event, "new", None) == "closed")
    inside = []

    def work(session):
        session.execute("select 1")
        inside.append(time.monotonic())
        while len(inside) < 3:
            session.execute("select pg_sleep(0.05)")

    lab.all([lambda: lab.run(work)] * 3)
    assert len(inside) == 3
    assert max(inside) >= closed_at + RAMP
    assert guard.snapshot().usable_slots == 3
    assert guard.snapshot().rejected.get("queue_timeout", 0) == 0


def recovered(lab, guard):
    with contextlib.suppress(CircuitOpenError):
        lab.query("select 1")
    return guard.state == "closed"
