"""A server that crashes or restarts under a protected engine costs the calls under way, nothing after."""

from __future__ import annotations

import os
import signal
import time

import pytest

from guardrails import BreakerPolicy, CallTimeoutError, CircuitOpenError
from guardrails.testing.servers import PostgresServer
from support.polling import poll
from support.sql_lab import drivers, laboratory

TIMEOUT = 20.0
AT_ONCE = 5.0
"""Seconds in which a call must know that its server is gone: far from its timeout."""


@pytest.fixture(scope="module")
def mortal():
    """A PostgreSQL that only these tests hurt."""
    with PostgresServer.start(max_connections=30) as server:
        yield server


@pytest.fixture(params=drivers("postgres"))
def lab(request, mortal):
    """An engine of each driver of PostgreSQL on the mortal server."""
    with laboratory(request.param, mortal) as lab:
        yield lab


def fill(lab):
    """Two idle connections in the pool; the server's processes behind them."""
    pids = lab.all([lambda: lab.query("select pg_backend_pid() from pg_sleep(0.1)")] * 2)
    assert len(set(pids)) == 2
    return pids


def answers(lab):
    """Whether the engine answers a question, and rightly."""
    try:
        return lab.query("select 42") == 42
    except Exception:
        return False


def whole(lab):
    """Nothing is taken, every connection of a full pool gives the right answer, and the circuit is closed."""
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)
    questions = [lambda n=n: lab.query(f"select {n} from pg_sleep(0.05)") for n in range(3)]
    assert lab.all(questions) == [0, 1, 2]
    assert lab.guard.state == "closed"


def test_backend_killed_in_the_middle_of_a_statement(lab):
    """kill -9 of a backend ends its statement; PostgreSQL then ends all others, and the engine finds back."""
    # How many questions fail before the server is back depends on the machine: the circuit is not asked here.
    lab.protect(guard={"timeout": TIMEOUT, "breaker": BreakerPolicy(minimum_number_of_calls=1000)})
    idle = fill(lab)
    victim = {}

    def work(session):
        victim["pid"] = session.execute("select pg_backend_pid()")
        session.execute("select pg_sleep(30)")

    with lab.meanwhile(lambda: lab.run(work)) as results:
        poll(lambda: lab.pause(0.01) or (victim and lab.running() == 1), "the statement runs")
        os.kill(victim["pid"], signal.SIGKILL)
        killed = time.monotonic()
    assert time.monotonic() - killed < AT_ONCE
    assert isinstance(results[0], Exception)
    assert not isinstance(results[0], CallTimeoutError)
    assert lab.guard.snapshot().failed == 1
    poll(lambda: answers(lab), "the engine is well again", 20)
    whole(lab)
    assert not set(idle) & set(fill(lab))


def test_idle_backend_that_was_killed_is_replaced(lab):
    """With pre-ping no caller notices that the connections in the pool have died with a backend."""
    lab.protect(guard={"timeout": TIMEOUT}, pool_pre_ping=True)
    idle = fill(lab)
    os.kill(idle[0], signal.SIGKILL)
    poll(lambda: not alive(idle[1]), "PostgreSQL has noticed", 20)
    poll(lambda: reachable(lab), "PostgreSQL has recovered", 20)
    whole(lab)
    assert not set(idle) & set(fill(lab))


def alive(pid):
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def reachable(lab):
    """Whether the server lets anybody in."""
    try:
        return lab.aside("select 1") == 1
    except Exception:
        return False


def test_restart_between_statements(lab):
    """An ordinary restart costs the first call its stale connection; the rest of the pool is made anew."""
    lab.protect(guard={"timeout": TIMEOUT})
    idle = fill(lab)
    lab.server.restart()
    start = time.monotonic()
    assert not answers(lab)
    assert time.monotonic() - start < AT_ONCE
    assert lab.query("select 42") == 42  # SQLAlchemy has seen that the whole pool is stale
    whole(lab)
    assert not set(idle) & set(fill(lab))


def test_circuit_opens_over_a_crash_and_heals_after_the_restart(lab):
    """While the server is gone calls fail at once, then are refused; when it is back a probe closes it."""
    breaker = BreakerPolicy(
        consecutive_failures=3, wait_duration_in_open_state=0.3, permitted_calls_in_half_open_state=1
    )
    lab.protect(guard={"timeout": TIMEOUT, "breaker": breaker})
    fill(lab)
    lab.server.kill()
    start = time.monotonic()
    try:
        while lab.guard.state == "closed":
            assert not answers(lab)
            assert time.monotonic() - start < AT_ONCE
        with pytest.raises(CircuitOpenError):
            lab.query("select 1")
    finally:
        lab.server.restart()
    poll(lambda: answers(lab), "the engine is well again", 20)
    whole(lab)
