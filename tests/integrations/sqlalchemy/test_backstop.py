"""The server's own limit on a statement, for when no cancel request can reach it."""

from __future__ import annotations

import contextlib
import functools
import logging

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import CallTimeoutError, ConfigurationError, protect
from guardrails._dbapi.drivers.postgres import PostgresDriver
from guardrails.testing.pgbouncer import PgBouncer
from guardrails.testing.proxy import FaultProxy
from support.sql_lab import drivers, lab_with, poll

lab = lab_with(drivers("postgres"))

LOST_CLIENT = {
    "client_connection_check_interval": "1s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
"""What PostgreSQL is asked to do when the other end of a connection is gone."""


def shown(lab, *names):
    """Settings of one session."""
    return lab.run(lambda session: [session.execute(f"show {name}") for name in names])


def connect_with(lab, **settings):
    """Makes an engine whose user has settings of their own, and guards it."""
    arguments = lab.backend.connect_args(lab.driver)
    if lab.driver == "asyncpg":
        arguments = {"server_settings": {**arguments["server_settings"], **settings}}
    elif settings and lab.driver == "pg8000":
        arguments = {**arguments, "startup_params": settings}
    elif settings:
        arguments = {**arguments, "options": " ".join(f"-c {name}={settings[name]}" for name in settings)}
    make = create_async_engine if hasattr(lab, "runner") else create_engine
    lab.engine = make(lab.url(), connect_args=arguments)
    return lab.engine


# --- a client that is gone --------------------------------------------------------------------------------


def test_statement_of_a_client_that_is_gone_ends(lab):
    """No order to cancel gets through any more: the server ends the statement once the socket is cut."""
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)
        lab.protect(guard={"timeout": 0.5})

        def work(session):
            session.execute("select 1")
            wire.refuse()
            session.execute("select pg_sleep(20)")

        with contextlib.suppress(CallTimeoutError):
            lab.run(work)
        poll(lambda: lab.running() == 0, "the server has noticed", 3.0)
        wire.heal()
        assert lab.query("select 42") == 42
        lab.dispose()


def test_nothing_else_is_ended(lab):
    """A statement that may take its time is not ended, by whichever way it gets there."""
    lab.protect(guard={"timeout": 0.3})
    assert lab.query("select 7 from pg_sleep(2.2)", timeout=10) == 7
    assert shown(lab, "statement_timeout") == ["0"]


def test_lost_clients_are_looked_for_from_the_first_byte(lab):
    """The settings are there in the first session, and survive what resets a session."""
    lab.protect()

    def work(session):
        session.execute("reset all")
        return [session.execute(f"show {name}") for name in LOST_CLIENT]

    assert lab.run(work) == list(LOST_CLIENT.values())


def test_settings_cost_no_round_trip(lab):
    """A guarded engine opens its connections with as many packets as a bare one."""
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)

        def turns():
            poll(lambda: wire.connections == 0, "the proxy has carried the last farewell")
            before = wire.turns
            assert lab.query("select 1") == 1
            return wire.turns - before

        lab.engine = lab.make_engine()
        bare = turns()
        lab.dispose()
        lab.protect()
        assert turns() == bare
        lab.dispose()


def test_users_own_settings_are_kept(lab):
    """One of the four that the user has chosen stays, the others are added."""
    protect(connect_with(lab, client_connection_check_interval="7s"), name="db")
    assert shown(lab, *LOST_CLIENT) == ["7s", "30", "10", "3"]


def test_settings_of_a_role_are_kept(lab):
    """The limit that a database administrator gives a role holds as before."""
    lab.aside("create role careful login", "alter role careful set statement_timeout = '9s'")
    try:
        lab.url = lambda url=lab.url: url().replace("postgres@", "careful@")
        lab.protect()
        assert shown(lab, "statement_timeout", *LOST_CLIENT) == ["9s", *LOST_CLIENT.values()]
    finally:
        lab.dispose()
        lab.aside("drop role careful")


@pytest.mark.parametrize("lab", ["psycopg", "psycopg_async", "psycopg2"], indirect=True)
def test_settings_of_the_environment_are_kept(lab, monkeypatch):
    """An argument would replace PGOPTIONS, which is the user's."""
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=8s -c tcp_keepalives_count=5")
    lab.protect()
    expected = ["8s", "1s", "30", "10", "5"]
    assert shown(lab, "statement_timeout", *LOST_CLIENT) == expected


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize("ignored", ["", "options, application_name, client_connection_check_interval"])
def test_pooler_is_connected_to_all_the_same(lab, caplog, mode, ignored):
    """pgbouncer knows none of the settings: it refuses once, or is set to ignore them. No call fails."""
    if not PgBouncer.installed():
        pytest.skip("pgbouncer is not installed")
    caplog.set_level(logging.INFO, "guardrails")
    with PgBouncer.start(
        lab.server, settings={"pool_mode": mode, "ignore_startup_parameters": ignored or "extra_float_digits"}
    ) as bouncer:
        lab.url = lambda port=None, url=lab.url: url(bouncer.port)
        arguments = {"statement_cache_size": 0} if lab.driver == "asyncpg" else {}
        make = create_async_engine if hasattr(lab, "runner") else create_engine
        lab.engine = make(lab.url(), pool_size=2, max_overflow=0, connect_args=arguments)
        lab.guard = protect(lab.engine, name="db")
        asked = [lambda: lab.query("select 1 from pg_sleep(0.1)")]
        assert lab.all(asked) + lab.all(asked * 2) == [1, 1, 1]
        assert lab.guard.snapshot().failed == 0
        lab.dispose()
    said = [record.levelname for record in caplog.records if "lost clients" in record.getMessage()]
    assert said in (["INFO"], [] if ignored else ["INFO"])


class Server:
    """A server that refuses some settings, as the driver's connect function sees it."""

    def __init__(self, *unknown):
        self.unknown = unknown
        self.asked = []

    def connect(self, **arguments):
        self.asked.append(arguments)
        for name in self.unknown:
            if name in arguments.get("options", ""):
                raise OSError(f'FATAL: unrecognized configuration parameter "{name}"')
        return "a connection"


class Driver(PostgresDriver):
    """What opens connections, of any driver."""

    cancel = kill = failed = sqlstate = _asked_for = None

    def _reported(self, own, name):
        """Nothing: the server is an old one."""


def test_old_server_keeps_the_limit():
    """PostgreSQL 13 does not look after its clients; a limit for statements it has, and it is asked once."""
    server, driver = Server("client_connection_check_interval"), Driver()
    for _ in range(2):
        assert driver.open(server.connect, {}, 1.0, 60) == "a connection"
    assert [arguments["options"].count("-c") for arguments in server.asked] == [5, 1, 1]
    assert server.asked[-1]["options"] == "-c statement_timeout=60000"


@pytest.mark.parametrize(
    "given",
    [{"dsn": "options='-c statement_timeout=1s'"}, {"service": "shop"}, {"conninfo": "service=shop"}],
)
def test_options_that_cannot_be_seen_are_left_alone(given):
    """An argument would replace the option of a connection string or a service file."""
    server = Server()
    driver = Driver()
    driver.open(server.connect, given, 1.0, 60)
    driver.open(functools.partial(lambda _, **arguments: server.connect(**arguments), "host=a"), {}, 1.0, 60)
    assert server.asked == [given, {}]


def test_other_errors_are_not_tried_again():
    """A wrong password is not sent twice, and a server without a free connection is not asked twice."""

    def connect(**_arguments):
        asked.append(1)
        raise OSError('FATAL: password authentication failed for user "shop"')

    asked = []
    driver = Driver()
    for _ in range(2):
        with pytest.raises(OSError, match="password"):
            driver.open(connect, {}, 1.0, None)
    assert len(asked) == 2


def test_refusal_is_believed_only_if_it_goes_without():
    """A server that refuses every connection has not refused the settings: the next connection sends them."""

    def down(**_arguments):
        raise OSError("FATAL: the server is down, which is not an option")

    driver = Driver()
    with pytest.raises(OSError, match="down"):
        driver.open(down, {}, 1.0, None)
    up = Server()
    driver.open(up.connect, {}, 1.0, None)
    assert "client_connection_check_interval" in up.asked[0]["options"]


# --- a limit for every statement --------------------------------------------------------------------------


def test_backstop_is_set_when_connecting(lab):
    """It comes with the start-up packet, in whole milliseconds, and a short-lived limit does not touch it."""
    lab.protect(guard={"timeout": 1, "backstop": 1.5004}, pool_size=1, max_overflow=0)
    assert lab.query("show statement_timeout") == "1501ms"
    lab.query("select 1", timeout=0.2)
    assert lab.query("show statement_timeout") == "1501ms"


def test_without_one_the_servers_own_limit_holds(lab):
    """No statement of PostgreSQL's has a limit that it had not before."""
    lab.protect(guard={"timeout": 1})
    assert lab.query("show statement_timeout") == "0"


def test_users_own_limit_is_kept(lab):
    """Who has set a statement_timeout knows why."""
    protect(connect_with(lab, statement_timeout="77s"), name="db", backstop=60)
    assert lab.query("show statement_timeout") == "77s"


def test_statement_cannot_ask_for_more(lab):
    """A statement cannot have a longer limit than the server's."""
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
    """pgbouncer refuses settings it does not know: the engine works without a backstop, and logs that."""
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
