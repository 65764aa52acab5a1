"""Criticality through the shell: said once, inherited inwards, and the lower class refused first."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import Counter

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import ConfigurationError, RejectedError, ShedError, deadline, guarded, protect
from guardrails._core.criticality import CLASSES, CRITICAL
from guardrails._runtime.scope import current, rank_of
from guardrails.testing.servers import PostgresServer


def rank():
    """How much the running code matters."""
    return rank_of(current())


def test_a_class_is_inherited_inwards_and_the_innermost_word_counts(make_guard):
    """By everything a function calls, through deadlines and other guards, and forgotten when it returns."""
    db, cache = make_guard("db"), make_guard("cache")
    seen = []

    def note():
        seen.append(rank())

    inner = guarded(cache)(note)
    batch = guarded(db, criticality="SHEDDABLE")(note)

    def page():
        note()
        inner()
        with deadline(5):
            note()
        batch()
        note()

    guarded(db, criticality="CRITICAL_PLUS")(page)()
    page()
    names = [CLASSES[one] for one in seen]
    assert names[:5] == ["CRITICAL_PLUS"] * 3 + ["SHEDDABLE", "CRITICAL_PLUS"]
    assert names[5:] == ["CRITICAL"] * 3 + ["SHEDDABLE", "CRITICAL"]
    assert rank() == CRITICAL


def test_async_functions_keep_their_kind_and_their_class(make_guard):
    """Tasks and threads that a function starts inherit its class, each its own."""
    db = make_guard()

    @guarded(db, criticality="SHEDDABLE")
    async def low():
        await asyncio.sleep(0)
        return rank(), await asyncio.to_thread(rank), await asyncio.create_task(asyncio.sleep(0, rank()))

    @guarded(db)
    async def plain():
        await asyncio.sleep(0)
        return rank()

    async def main():
        return await asyncio.gather(low(), plain(), low())

    assert inspect.iscoroutinefunction(low)
    assert asyncio.run(main()) == [(0, 0, 0), CRITICAL, (0, 0, 0)]


@pytest.mark.parametrize("wrong", ["sheddable", "HIGH", 2, ""])
def test_an_unknown_criticality_is_refused_at_decoration(make_guard, wrong):
    """The message names the four."""
    with pytest.raises(ConfigurationError, match="criticality must be 'SHEDDABLE' or 'SHEDDABLE_PLUS' or"):
        guarded(make_guard(), criticality=wrong)


def test_the_lower_class_is_refused_first(make_guard):
    """Of ten slots SHEDDABLE calls leave CRITICAL ones what those count on; the refusal says why."""
    db = make_guard(max_concurrent_calls=10, max_wait_duration=0)
    go_on, inside, refused = threading.Event(), [], []

    def hold():
        inside.append(1)
        go_on.wait(20)

    def batch():
        try:
            guarded(db, criticality="SHEDDABLE")(hold)()
        except RejectedError as error:
            refused.append(error)

    threads = [threading.Thread(target=guarded(db)(hold))]
    threads += [threading.Thread(target=batch) for _ in range(9)]
    try:
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(inside) + len(refused) < number:
                time.sleep(0.001)
        assert len(inside) == 6
        assert {type(error) for error in refused} == {ShedError}
        assert {(error.guard, error.reason) for error in refused} == {("db", "shed")}
        assert db.run(lambda: "served") == "served"
    finally:
        go_on.set()
        for thread in threads:
            thread.join()
    assert db.snapshot().rejected == {"shed": 4}


def test_calls_without_a_criticality_pay_nothing_for_it(make_guard):
    """A guard that has never seen a class keeps no account of any, however many others have."""
    other, db = make_guard("other"), make_guard()
    guarded(other, criticality="SHEDDABLE")(lambda: None)()
    db.run(lambda: None)
    assert db.call_settings.gates[0].core.bulkhead.ranks is None
    assert other.call_settings.gates[0].core.bulkhead.ranks is not None
    assert db.call_settings.gates[0].core.admits_all


@pytest.fixture(scope="module")
def postgres():
    """A PostgreSQL for this file."""
    with PostgresServer.start() as server:
        yield server


def test_a_flood_of_sheddable_checkouts_leaves_critical_ones_alone(postgres):
    """On a real pool of ten: SHEDDABLE work at five times its capacity, CRITICAL work at a quarter of it."""

    async def main():
        engine = create_async_engine(postgres.url("asyncpg"), pool_size=10, max_overflow=0)
        db = protect(engine, name="db", max_wait_duration=1.0)

        async def query():
            async with engine.connect() as connection:
                await connection.execute(text("select pg_sleep(0.5)"))

        seen = {"CRITICAL": Counter(), "SHEDDABLE": Counter()}

        async def user(name):
            try:
                await guarded(db, criticality=name)(query)()
                seen[name]["ok"] += 1
            except RejectedError as error:
                seen[name][error.reason] += 1

        await asyncio.gather(*(query() for _ in range(10)))  # the connections are open
        async with asyncio.TaskGroup() as users:
            for _ in range(25):  # five seconds
                for _ in range(20):  # a hundred a second; ten slots of 0.5 s serve twenty
                    users.create_task(user("SHEDDABLE"))
                users.create_task(user("CRITICAL"))
                await asyncio.sleep(0.2)
        assert db.snapshot().in_use == 0
        await engine.dispose()
        return seen

    seen = asyncio.run(main())
    critical, sheddable = seen["CRITICAL"], seen["SHEDDABLE"]
    assert critical["ok"] >= 0.99 * critical.total() == 0.99 * 25
    assert sheddable["shed"] > 0.5 * sheddable.total()
    assert sheddable["ok"] > 0
