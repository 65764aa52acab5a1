"""A table lock several times as long as the timeout: shadow counts what enforcing refuses and stops."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import CallTimeoutError, RejectedError, protect
from guardrails._runtime.scope import RequestScope, close, current, enter
from support.polling import poll
from support.sql_lab import Postgres

pytestmark = [pytest.mark.slow, pytest.mark.first, pytest.mark.timeout(120)]

TIMEOUT = 1.5
BEFORE, LOCKED, AFTER = 3.0, 12.0, 3.0
LIST, ADD, OTHER = "GET /orders", "POST /orders", "GET /customers"
ROUTES = {
    LIST: ("SELECT count(*) FROM long_locked", 9),
    ADD: ("INSERT INTO long_locked VALUES (1)", 6),
    OTHER: ("SELECT 1", 9),
}
"""The statement of each route, and its requests a second."""


def arrivals(rate, dice):
    """The moments of independent requests."""
    at = 0.0
    while (at := at + dice.expovariate(rate)) < BEFORE + LOCKED + AFTER:
        yield at


async def request(engine, route, at, outcomes):
    """One request of a patient user."""
    await asyncio.sleep(at - time.monotonic())
    scope = enter(RequestScope(None, time.monotonic, current()))
    scope.name = route
    try:
        async with engine.begin() as connection:
            await connection.execute(text(ROUTES[route][0]))
        outcomes["answered", route] += 1
    except RejectedError:
        outcomes["refused", route] += 1
    except CallTimeoutError:
        outcomes["stopped", route] += 1
    finally:
        close(scope)


async def run(engines, backend):
    """Sends the same requests to each engine, and locks the table meanwhile."""
    outcomes = {mode: Counter() for mode in engines}
    start, dice = time.monotonic() + 0.2, random.Random(5)
    people = [(at, route) for route, (_, rate) in ROUTES.items() for at in arrivals(rate, dice)]
    async with asyncio.TaskGroup() as tasks:
        for mode, engine in engines.items():
            for at, route in people:
                tasks.create_task(request(engine, route, start + at, outcomes[mode]))
        await asyncio.sleep(start + BEFORE - time.monotonic())
        with backend.connect() as other:
            for sql in backend.lock("long_locked"):
                backend.run(other, sql)
            await asyncio.sleep(LOCKED)
    return outcomes


def near(found, wanted, rate):
    """Within a fifth, or the calls of one open period: how a circuit meets the end of the lock is chance."""
    return found == pytest.approx(wanted, rel=0.2, abs=2.5 * rate)


def test_a_lock_that_outlasts_the_timeout_counts_as_enforcing_meets_it(postgres):
    backend = Postgres(postgres)
    with backend.connect() as setup:
        backend.run(setup, "CREATE TABLE long_locked (number int)")
    engines = {mode: create_async_engine(backend.url("asyncpg")) for mode in ("enforce", "shadow")}
    options = {"timeout": TIMEOUT, "random": lambda: 0.5, "ask_server": False}
    guards = {mode: protect(engine, name=mode, mode=mode, **options) for mode, engine in engines.items()}

    async def main():
        outcomes = await run(engines, backend)
        for engine in engines.values():
            await engine.dispose()
        return outcomes

    try:
        outcomes = asyncio.run(main())
    finally:
        with backend.connect() as end:
            backend.run(end, "DROP TABLE long_locked")
    real, sums = outcomes["enforce"], guards["shadow"]._gate.report.sums.report()
    assert {what for what, _ in outcomes["shadow"]} == {"answered"}
    for route, (_, rate) in ROUTES.items():
        would_refuse = sum(sums["routes"].get(route, {}).values())
        assert near(would_refuse, real["refused", route], rate), (route, sums["routes"], real)
    stopped = sum(real["stopped", route] for route in ROUTES)
    assert near(guards["shadow"].snapshot().would_stop, stopped, 5)
    assert stopped > 15
    assert real["refused", LIST] > 30
    for guard in guards.values():
        poll(lambda guard=guard: guard.snapshot().in_use == 0, "the slots are back", 3)
