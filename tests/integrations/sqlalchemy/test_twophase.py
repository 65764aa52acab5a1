"""Two-phase transactions: every phase is bounded and is evidence, and the ends pass a closed gate."""

from __future__ import annotations

import contextlib
import functools
import time
from uuid import uuid4

import pytest
from sqlalchemy import text

from guardrails import CallTimeoutError, CircuitOpenError, CommitUnknownError, deadline
from guardrails.testing.proxy import FaultProxy
from support.lateness import LATE
from support.prepared import tidy
from support.sql_lab import those

LIMIT = 0.5


@pytest.fixture
def wired(lab):
    """The lab, its wire through a proxy that can be cut; afterwards no transaction is left prepared."""
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)
        lab.wire = wire
        yield lab
        wire.heal()
        lab.dispose()
    tidy(lab)


PHASES = {
    "begin": lambda connection, hang: (hang(), begin(connection)),
    "prepare": lambda connection, hang: (begin(connection), hang(), connection.phase.prepare()),
    "commit": lambda connection, hang: (prepared(connection), hang(), connection.phase.commit()),
    "rollback": lambda connection, hang: (prepared(connection), hang(), connection.phase.rollback()),
    "recover": lambda connection, hang: (hang(), connection.recover_twophase()),
    "commit_prepared": lambda connection, hang: (
        hang(),
        connection.commit_prepared(uuid4().hex, recover=True),
    ),
}
"""What hangs in each phase."""


def begin(connection):
    """Begins a transaction that does something."""
    connection.phase = connection.begin_twophase()
    connection.execute(text("select 1"))


def prepared(connection):
    """One that is prepared."""
    begin(connection)
    connection.phase.prepare()


@pytest.mark.parametrize("phase", PHASES)
def test_phase_on_a_silent_wire_ends(wired, phase):
    """Each phase ends by its deadline; a commit that hung may have happened, and is called so."""
    wired.protect(guard={"timeout": LIMIT}, pool_size=1, max_overflow=0)
    wired.soon()
    error = CommitUnknownError if phase.startswith("commit") else CallTimeoutError
    start = None

    def hang():
        nonlocal start
        wired.wire.hang()
        start = time.monotonic()

    def work(session):
        with pytest.raises(error) as info:
            PHASES[phase](session.connection, hang)
        assert type(info.value) is error

    wired.run(work)
    assert time.monotonic() - start < 2 * (LIMIT + LATE)
    assert (wired.pool.checkedout(), wired.guard.snapshot().in_use) == (0, 0)
    assert wired.guard.snapshot().failed >= 1
    wired.wire.heal()
    assert wired.soon() == 42


def test_an_open_circuit_lets_phases_end_and_refuses_new_ones(lab):
    """With an open circuit and no time left a prepared transaction is rolled back, and no new one begins."""
    lab.protect(pool_size=2, max_overflow=0)

    def work(session):
        prepared(session.connection)
        lab.guard.force_open()
        with deadline(0):
            session.connection.phase.rollback()

    lab.run(work)
    with pytest.raises(CircuitOpenError):
        lab.query("select 1")
    lab.guard.reset()
    assert lab.run(lambda session: session.connection.recover_twophase()) == []


def test_two_phases_in_time(lab):
    """A transaction in two phases is committed; another is recovered and rolled back."""
    lab.protect()
    lab.aside("drop table if exists phases", "create table phases (n int)")

    def work(session):
        connection = session.connection
        with connection.begin_twophase() as transaction:
            connection.execute(text("insert into phases values (1)"))
            transaction.prepare()
            transaction.commit()
        prepared(connection)
        xid = connection.phase.xid
        connection.phase.rollback()
        return xid

    lab.run(work)
    assert lab.query("select count(*) from phases") == 1
    lab.aside("drop table phases")
    snapshot = lab.guard.snapshot()
    assert (snapshot.failed, snapshot.in_use) == (0, 0)


@those("psycopg", "psycopg2", "pg8000")
def test_raw_phases_are_bounded(wired):
    """PEP 249's own methods on a raw connection are bounded likewise."""
    wired.protect(guard={"timeout": LIMIT}, pool_size=1, max_overflow=0)
    for phase, error in (("tpc_prepare", CallTimeoutError), ("tpc_commit", CommitUnknownError)):
        with contextlib.closing(wired.engine.raw_connection()) as raw:
            raw.tpc_begin(raw.xid(0, uuid4().hex, ""))
            raw.cursor().execute("select 1")
            if phase == "tpc_commit":
                raw.tpc_prepare()
            wired.wire.hang()
            start = time.monotonic()
            with pytest.raises(error):
                getattr(raw, phase)()
            assert time.monotonic() - start < LIMIT + LATE
        wired.wire.heal()
    assert (wired.pool.checkedout(), wired.guard.snapshot().in_use) == (0, 0)


def test_driver_without_phases_has_none(lab):
    """A raw connection has the methods that the driver's has."""
    lab.protect()
    lab.run(
        lambda session: (
            None
            if hasattr(session.connection.connection, "tpc_begin")
            == hasattr(session.connection.connection.dbapi_connection, "tpc_begin")
            else pytest.fail("not the driver's methods")
        )
    )
