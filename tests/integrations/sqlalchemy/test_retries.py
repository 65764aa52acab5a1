"""Retries and fallbacks around a real database: a pause holds no connection, an answer is not retried."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from guardrails import CallTimeoutError, DeadlineSpentError, deadline, guarded, retrying
from support.lateness import LATE
from support.sql_lab import SyncLab

DIE = "select pg_terminate_backend(pg_backend_pid())"


def ask_through(lab, statements, seconds=None, **recovery):
    """Makes one decorated call that runs the next of these statements on a checkout of its own."""
    if isinstance(lab, SyncLab):

        @guarded(lab.guard, **recovery)
        def ask():
            with lab.engine.connect() as connection:
                return connection.execute(text(statements.pop(0))).scalar()

        if seconds is None:
            return ask()
        with deadline(seconds):
            return ask()

    @guarded(lab.guard, **recovery)
    async def ask_async():
        async with lab.engine.connect() as connection:
            return (await connection.execute(text(statements.pop(0)))).scalar()

    async def hurried():
        with deadline(seconds):
            return await ask_async()

    return lab.runner.run(ask_async() if seconds is None else hurried())


def test_a_killed_connection_is_replaced_and_none_is_held_meanwhile(lab):
    """With a pool of one: the pause finds it empty, and the second attempt gets a live connection."""
    lab.protect(pool_size=1, max_overflow=0)
    seen = []

    def spy(seconds):
        seen.append((lab.pool.checkedout(), lab.guard.snapshot().in_use))

    policy = retrying(on=DBAPIError).copy(sleep=spy)
    assert ask_through(lab, [DIE, DIE, "select 42"], retry=policy) == 42
    assert seen == [(0, 0), (0, 0)]


def test_retries_against_a_frozen_server_end_with_the_deadline(lab):
    """Each attempt has its own timeout; no pause is begun that would outlast the caller."""
    lab.protect()
    assert lab.query("select 1") is not None
    start = time.monotonic()
    with lab.frozen(), pytest.raises((CallTimeoutError, DeadlineSpentError)):
        ask_through(lab, ["select 1"] * 99, seconds=1.0, timeout=0.2, retry=retrying(attempts=99))
    assert time.monotonic() - start < 1.0 + LATE


def test_a_databases_answer_is_neither_retried_nor_answered_for(lab):
    """A double entry stays one, however often it is sent; hiding it would be a lie."""
    lab.protect()
    lab.aside("create table once (id int primary key)")
    answered = []
    try:
        with pytest.raises(IntegrityError):
            ask_through(lab, ["insert into once values (1), (1)"], retry=retrying(), fallback=answered.append)
    finally:
        lab.aside("drop table once")
    assert not answered
