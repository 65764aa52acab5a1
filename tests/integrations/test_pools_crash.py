"""A server that crashes or restarts under a driver's pool costs the calls under way, nothing after."""

from __future__ import annotations

import os
import signal
import time

import pytest

from guardrails import BreakerPolicy, CallTimeoutError
from guardrails.testing.servers import PostgresServer
from support.polling import poll
from support.pool_lab import KINDS

AT_ONCE = 5.0
"""Seconds in which a call must know that its server is gone: far from its timeout."""


@pytest.fixture(scope="module")
def mortal():
    """A PostgreSQL that only these tests hurt."""
    with PostgresServer.start(max_connections=30) as server:
        yield server


@pytest.fixture(params=KINDS)
def lab(request, mortal):
    """A pool of each kind on the mortal server."""
    with KINDS[request.param](mortal) as lab:
        yield lab


def answers(lab):
    """Whether the pool answers a question, and rightly."""
    try:
        return lab.query("select 42") == 42
    except Exception:
        return False


def whole(lab):
    """Nothing is taken, and every connection of a full pool gives the right answer."""
    assert lab.guard.snapshot().in_use == 0
    poll(lambda: lab.pause(0.01) or answers(lab), "the pool is well again", 20)
    questions = [lambda n=n: lab.query(f"select {n} from pg_sleep(0.05)") for n in range(3)]
    poll(lambda: lab.all(questions) == [0, 1, 2], "each connection is well", 20)
    assert lab.guard.snapshot().in_use == 0


def test_backend_killed_in_the_middle_of_a_statement(lab):
    """kill -9 of a backend ends its statement; PostgreSQL then ends all others, and the pool finds back."""
    lab.protect(guard={"timeout": 20})
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
    assert lab.guard.snapshot().failed >= 1
    whole(lab)


def test_restart_between_statements(lab):
    """An ordinary restart costs the calls that get a stale connection, at once."""
    lab.protect(guard={"timeout": 20})
    assert lab.all([lambda: lab.query("select 42 from pg_sleep(0.1)")] * 2) == [42, 42]
    lab.server.restart()
    start = time.monotonic()
    answers(lab)
    assert time.monotonic() - start < AT_ONCE
    whole(lab)


def test_a_server_that_is_down_opens_the_circuit(lab):
    """Connects that fail are evidence; when the server is back, the circuit closes."""
    policy = {"breaker": BreakerPolicy(minimum_number_of_calls=3, wait_duration_in_open_state=0.2)}
    lab.protect(guard={"timeout": 0.5, **policy})
    lab.server.kill()
    try:
        poll(lambda: answers(lab) or lab.guard.state == "open", "the circuit opens", 20)
    finally:
        lab.server.restart()
    poll(lambda: lab.pause(0.05) or answers(lab), "a call is answered", 40)
    poll(lambda: answers(lab) and lab.guard.state == "closed", "the circuit closes", 20)
    whole(lab)
