"""Errors of the client alone: nothing was sent, so on every driver they are no evidence."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import MissingGreenlet, StatementError

from guardrails import protect
from support.sql_lab import DRIVERS

REFUSALS = (StatementError, ValueError, TypeError, OverflowError)
NUL, SURROGATE, UNKNOWN = "a\x00b", "\ud800", {"a": object()}
REFUSED = {
    "psycopg": [NUL, SURROGATE, UNKNOWN],
    "psycopg2": [NUL, SURROGATE, UNKNOWN],
    "pg8000": [SURROGATE, UNKNOWN],
    "asyncpg": [SURROGATE, UNKNOWN, 1 << 100],
    "pymysql": [SURROGATE, UNKNOWN],
    "mysqldb": [SURROGATE],
    "aiomysql": [SURROGATE, UNKNOWN],
    "asyncmy": [SURROGATE],
}
"""What each driver refuses to send. Of a NUL asyncpg and pg8000 ask the server; MySQL's drivers send it."""


def test_what_the_driver_refuses_to_send_is_no_evidence(lab):
    """Neither a failure nor a success, however often."""
    guard = lab.protect()
    lab.query("select 1")
    before = guard.snapshot()
    question = text("select cast(:value as char(9))")
    for value in REFUSED[lab.driver]:
        with pytest.raises(REFUSALS):
            lab.run(lambda session, value=value: session.connection.execute(question, {"value": value}))
    after = guard.snapshot()
    assert (after.failed, after.calls) == (0, before.calls)
    assert after.abandoned - before.abandoned == len(REFUSED[lab.driver])
    assert set(REFUSED) >= {driver for _, driver, _ in DRIVERS.values()}
    for number in range(3):
        assert lab.query(f"select {number}") == number, "the connection gives right answers"


@pytest.mark.parametrize("value", [1 << 100, SURROGATE, UNKNOWN], ids=["large", "surrogate", "no type"])
def test_what_sqlite_refuses_to_bind_is_no_evidence(value):
    """OverflowError, UnicodeEncodeError, and an error of its own without a code."""
    engine = create_engine("sqlite://")
    guard = protect(engine, max_concurrent_calls=1)
    with engine.connect() as connection:
        before = guard.snapshot()
        with pytest.raises(REFUSALS):
            connection.execute(text("select :value"), {"value": value})
        after = guard.snapshot()
    assert (after.failed, after.calls, after.abandoned - before.abandoned) == (0, before.calls, 1)
    engine.dispose()


@pytest.mark.parametrize("lab", ["asyncpg"], indirect=True)
def test_a_missing_greenlet_is_no_evidence(lab):
    """An async engine's statement outside of its greenlet."""
    guard = lab.protect()

    async def outside():
        async with lab.engine.connect() as connection:
            before = guard.snapshot().calls
            with pytest.raises(MissingGreenlet):
                connection.sync_connection.execute(text("select 1"))
            assert (guard.snapshot().failed, guard.snapshot().calls) == (0, before)

    lab.runner.run(outside())
