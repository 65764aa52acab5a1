"""Alembic on a guarded engine: a migration has the time its connection asks for."""

from __future__ import annotations

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations

from guardrails import CallTimeoutError
from support.polling import poll
from support.sql_lab import drivers, lab_with

lab = lab_with([name for name in drivers("postgres") if name != "pg8000"])
"""With pg8000, Alembic's question for the isolation level begins a transaction in its autocommit block."""

SLOW = "select 1 from pg_sleep(0.8)"


def migrate(session, *, options):
    """Runs slow steps in a transaction and outside of one, as ``env.py`` does online."""
    connection = session.connection.execution_options(**options)
    context = MigrationContext.configure(connection)
    with context.begin_transaction():
        step = Operations(context)
        step.execute("create table if not exists migrated (n int)")
        step.execute(SLOW)
        with context.autocommit_block():
            step.execute(SLOW)
            step.execute("create index concurrently if not exists migrated_n on migrated (n)")
        step.execute("drop table migrated")


def test_migration_has_the_time_its_connection_asks_for(lab):
    """``guardrails_timeout`` holds inside ``autocommit_block`` too."""
    lab.protect(guard={"timeout": 0.3, "breaker": None})
    lab.run(lambda session: migrate(session, options={"guardrails_timeout": 60}))
    assert lab.aside("select to_regclass('migrated')") is None
    assert lab.guard.snapshot().failed == 0


def test_migration_that_asks_for_nothing_has_the_guards_time(lab):
    """It is stopped on the server and leaves no table."""
    lab.protect(guard={"timeout": 0.3, "breaker": None})
    with pytest.raises(CallTimeoutError):
        lab.run(lambda session: migrate(session, options={}))
    poll(lambda: lab.running() == 0, "the step was cancelled on the server")
    assert lab.aside("select to_regclass('migrated')") is None
