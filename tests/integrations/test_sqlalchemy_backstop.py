"""The server's own limit, for the time when nobody can tell it to stop."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import ConfigurationError, protect
from guardrails.testing.pgbouncer import PgBouncer
from support.sql_lab import drivers, lab_with

lab = lab_with(drivers("postgres"))


def test_backstop_is_set_when_connecting(lab):
    """It comes with the start-up packet, in whole milliseconds, and a short-lived limit does not touch it."""
    lab.protect(guard={"timeout": 1, "backstop": 1.5004}, pool_size=1, max_overflow=0)
    assert lab.query("show statement_timeout") == "1501ms"
    lab.query("select 1", timeout=0.2)
    assert lab.query("show statement_timeout") == "1501ms"


def test_without_one_the_servers_own_limit_holds(lab):
    """PostgreSQL is told nothing that it was not told before."""
    lab.protect(guard={"timeout": 1})
    assert lab.query("show statement_timeout") == "0"


def test_users_own_limit_is_kept(lab):
    """Who has set a statement_timeout knows why."""
    arguments = lab.backend.connect_args(lab.driver)
    if lab.driver == "asyncpg":
        arguments = {"server_settings": {**arguments["server_settings"], "statement_timeout": "77s"}}
    else:
        arguments = {**arguments, "options": "-c statement_timeout=77s"}
    make = create_async_engine if hasattr(lab, "runner") else create_engine
    lab.engine = make(lab.url(), connect_args=arguments)
    lab.guard = protect(lab.engine, name="db", backstop=60)
    assert lab.query("show statement_timeout") == "77s"


def test_statement_cannot_ask_for_more(lab):
    """A longer limit than the server's would be a promise nobody keeps."""
    lab.protect(guard={"timeout": 1, "backstop": 2})
    assert lab.query("select 1", timeout=2) == 1
    with pytest.raises(ConfigurationError, match="guardrails_timeout must be at most the engine's backstop"):
        lab.query("select 1", timeout=2.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backstop": 0}, "backstop must be a number of seconds"),
        ({"backstop": float("nan")}, "backstop must be a number of seconds"),
        ({"backstop": "5"}, "backstop must be a number of seconds"),
        ({"backstop": 5}, "must be above the timeout of 5 s"),
        ({"backstop": 5, "timeout": None}, "a backstop needs a timeout"),
    ],
)
def test_wrong_backstops_are_refused(options, message):
    """Before anything is attached."""
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(ConfigurationError, match=message):
        protect(engine, **options)
    protect(engine)


def test_pooler_that_refuses_it_is_asked_once(lab, caplog):
    """pgbouncer refuses settings it does not know: the engine works, without a backstop, and says so."""
    if not PgBouncer.installed():
        pytest.skip("pgbouncer is not installed")
    with PgBouncer.start(lab.server) as bouncer:
        lab.url = lambda port=None, url=lab.url: url(bouncer.port)
        arguments = {"statement_cache_size": 0} if lab.driver == "asyncpg" else {}
        make = create_async_engine if hasattr(lab, "runner") else create_engine
        lab.engine = make(lab.url(), pool_size=2, max_overflow=0, connect_args=arguments)
        lab.guard = protect(lab.engine, name="db", backstop=60)
        asked = [lambda: lab.query("select 1 from pg_sleep(0.1)")]
        assert lab.all(asked) + lab.all(asked * 2) == [1, 1, 1]
        assert lab.query("show statement_timeout") == "0"
        assert lab.guard.snapshot().failed == 0
        assert len([record for record in caplog.records if "backstop is off" in record.message]) == 1
        lab.dispose()
