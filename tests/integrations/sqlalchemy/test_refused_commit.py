"""A COMMIT for which no time is left: its rows never appear, whoever uses the connection next."""

from __future__ import annotations

import contextlib

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from guardrails import DeadlineSpentError, deadline
from support.prepared import names_of_prepared, tidy
from support.sql_lab import in_threads


@pytest.fixture
def refused(lab):
    """The lab with an empty table and one connection, which the next user gets."""
    lab.aside("drop table if exists refused", "create table refused (n int)")
    lab.protect(pool_size=1, max_overflow=0)
    yield lab
    lab.dispose()
    tidy(lab)
    lab.aside("drop table refused")


def insert(session, number):
    """Inserts a row."""
    session.execute(f"insert into refused values ({number})")


def commit_next(lab):
    """The next user of the connection commits a row of its own; returns the rows there are then."""
    before = lab.pool.checkedin()

    def work(session):
        insert(session, 2)
        session.commit()

    lab.run(work)
    assert before == 1, "the connection was kept"
    return lab.aside("select sum(n) from refused")


def by_connection(session):
    insert(session, 1)
    with deadline(0):
        session.commit()


def by_block(session):
    with session.connection.begin() as transaction:
        insert(session, 1)
        with deadline(0):
            transaction.commit()


def of_a_level(session):
    session.connection.execution_options(isolation_level="SERIALIZABLE")
    by_connection(session)


def by_session(session):
    with Session(session.connection) as orm:
        orm.execute(text("insert into refused values (1)"))
        with deadline(0):
            orm.commit()


def in_one_phase_of_two(session):
    transaction = session.connection.begin_twophase()
    insert(session, 1)
    with deadline(0):
        transaction.commit()


@pytest.mark.parametrize(
    "work", [by_connection, by_block, of_a_level, by_session, in_one_phase_of_two], ids=lambda it: it.__name__
)
def test_refused_commit_is_rolled_back(refused, work):
    """SQLAlchemy sends no ROLLBACK after a COMMIT that raised; the next COMMIT must not be for both."""
    with pytest.raises(DeadlineSpentError):
        refused.run(work)
    assert commit_next(refused) == 2
    assert not names_of_prepared(refused)
    assert refused.guard.snapshot().in_use == 0


def test_commit_of_a_prepared_transaction_is_not_refused(refused):
    """It would stay prepared, with its locks, and SQLAlchemy has no way back to it."""

    def work(session):
        transaction = session.connection.begin_twophase()
        insert(session, 1)
        transaction.prepare()
        with deadline(0):
            transaction.commit()

    refused.run(work)
    assert not names_of_prepared(refused)
    assert commit_next(refused) == 3


def test_refused_prepare_can_be_rolled_back(refused):
    """Where the first phase is several statements none of them is sent if there is no time for it."""

    def work(session):
        transaction = session.connection.begin_twophase()
        insert(session, 1)
        with deadline(0), pytest.raises(DeadlineSpentError):
            transaction.prepare()
        transaction.rollback()

    refused.run(work)
    assert not names_of_prepared(refused)
    assert commit_next(refused) == 2


@in_threads
@pytest.mark.parametrize("again", [True, False], ids=["again", "closed"])
def test_refused_commit_of_a_raw_connection_can_be_repeated(refused, again):
    """Its transaction is its user's affair until the connection is given back, and is rolled back then."""
    with contextlib.closing(refused.engine.raw_connection()) as raw:
        cursor = raw.cursor()
        cursor.execute("insert into refused values (1)")
        cursor.close()
        with deadline(0), pytest.raises(DeadlineSpentError):
            raw.commit()
        if again:
            raw.commit()
    assert commit_next(refused) == (3 if again else 2)
