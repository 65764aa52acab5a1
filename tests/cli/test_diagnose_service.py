"""``guardrails diagnose --status`` joins a service's status page with its server; ``--all`` prints tables."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import urllib.request
from wsgiref.simple_server import WSGIRequestHandler, make_server

import psycopg
import pytest
import redis
from click.testing import CliRunner
from sqlalchemy import create_engine, text

from guardrails import RejectedError, protect
from guardrails.cli.diagnose import diagnose
from guardrails.integrations.wsgi import status_app
from guardrails.testing.pgbouncer import PgBouncer
from guardrails.testing.servers import ValkeyServer
from support.polling import poll
from support.sql_lab import BACKENDS, INNODB_REFRESH

CANARY = "canary-e90a"
"""Stands in statements; it is shown with ``--show-sql`` alone."""


def run(*words):
    """Runs the command; its exit code and what it printed."""
    done = CliRunner().invoke(diagnose, [*map(str, words)], env={"DATABASE_URL": None})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert CANARY not in done.output or "--show-sql" in words
    return done.exit_code, done.output


def found(*words):
    """The findings by kind, and the whole answer."""
    code, output = run(*words, "--json")
    answer = json.loads(output)
    assert code == bool(answer["findings"])
    return {each["kind"]: each for each in answer["findings"]}, answer


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        """Writes nothing."""


@contextlib.contextmanager
def served(application):
    """Serves a WSGI application; yields its URL."""
    with make_server("127.0.0.1", 0, application, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def service(url, **options):
    """A service with two connections and its status page; yields its engine and the URL of the page."""
    name = {"connect_args": {"application_name": "shop"}} if "postgres" in url else {}
    engine = create_engine(url, pool_size=2, max_overflow=0, **(name | options))
    guard = protect(engine, name="db", timeout=20.0, max_wait_duration=0.02, ask_server=False)
    with served(status_app([guard])) as address:
        yield engine, address
    engine.dispose()


@pytest.fixture
def table(postgres):
    """A table with a row to lock."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create table crowded (id int)")
        connection.execute("insert into crowded values (1)")
        yield
        connection.execute("drop table crowded")


@contextlib.contextmanager
def waiting(engine, count=2):
    """Statements of the service that wait for the row."""

    def load_order():
        with contextlib.suppress(Exception), engine.connect() as connection:
            connection.execute(text(f"select id from crowded where '{CANARY}' <> '' for update"))

    threads = [threading.Thread(target=load_order) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def locked(server):
    """Another application that holds the row; yields the number of its session."""
    with psycopg.connect(server.url(""), application_name="alembic") as other:
        other.execute("select id from crowded for update")
        yield other.info.backend_pid, other.rollback


def test_victims_and_blocker_are_joined_from_outside(postgres, table):
    """The lines that wait, their sessions, and the session for which they wait."""
    with service(postgres.url("psycopg")) as (engine, page), locked(postgres) as (pid, end), waiting(engine):
        poll(lambda: "locks: 2," in str(found(postgres.url())[0].get("locks")), "both wait")
        findings, answer = found(postgres.url(), "--status", page)
        text_answer = run(postgres.url(), "--status", f"{page}/status.json")[1]
        end()
    details = findings["locks"]["details"]
    assert details[-1].startswith("2 x cli/test_diagnose_service.py:")
    assert "wait for a lock on 'crowded' for up to" in details[-1]
    assert f"<- session {pid} of 'alembic', idle in transaction for" in details[-1]
    assert details[-1].partition(" for up to")[0] in text_answer
    assert answer["unseen"] == []
    assert findings["pool"]["what"].endswith(": 2 of 2 connections checked out")
    assert "2 x in a statement" in findings["pool"]["details"][0]


def test_sessions_of_other_processes_are_counted(postgres, table):
    """The page of one process is not all: the server has more sessions of that name."""
    url = postgres.url("psycopg")
    other = create_engine(url, pool_size=3, connect_args={"application_name": "shop"})
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(other.connect()).execute(text("select 1"))
        with service(url) as (engine, page), locked(postgres) as (_, end), waiting(engine):
            poll(lambda: "locks: 2," in str(found(postgres.url())[0].get("locks")), "both wait")
            _, answer = found(postgres.url(), "--status", page)
            end()
    other.dispose()
    (unseen,) = answer["unseen"]
    assert unseen == (
        "which code has 3 of the 5 sessions with the service's user and application: those of other "
        "processes (--status for each), or of pools without a guard"
    )


def test_a_blocker_in_the_service_is_named_with_its_line(postgres, table):
    """One connection of the service holds the row, and does something else."""
    with service(postgres.url("psycopg")) as (engine, page), engine.connect() as holder:
        holder.execute(text("select id from crowded for update"))
        with waiting(engine, 1):
            poll(lambda: "locks" in found(postgres.url())[0], "it waits")
            findings, _ = found(postgres.url(), "--status", page, "--slow", "0")
            holder.rollback()
    here = "held by cli/test_diagnose_service.py:"
    assert here in findings["locks"]["details"][0]
    assert here in findings["locks"]["details"][-1]
    assert any(here in each for each in findings["idle_in_transaction"]["details"])


def test_nothing_is_joined_behind_a_pooler(postgres, table):
    """The numbers are the pooler's: no line is named, and the answer says so."""
    if not PgBouncer.installed():
        pytest.skip("pgbouncer is not installed")
    with PgBouncer.start(postgres) as bouncer:
        url = bouncer.url("psycopg")
        with (
            service(url, connect_args={"prepare_threshold": None}) as (engine, page),
            locked(postgres) as (_, end),
            waiting(engine),
        ):
            poll(lambda: "locks: 2," in str(found(postgres.url())[0].get("locks")), "both wait")
            findings, answer = found(postgres.url(), "--status", page)
            end()
    assert "test_diagnose_service" not in str(findings["locks"])
    (unseen,) = answer["unseen"]
    assert unseen == (
        "which sessions 2 of 2 connections of the service have: ended meanwhile, on another server or "
        "behind a pooler or proxy"
    )


class OfAnotherMoment:
    """Status pages of which the first ``stale`` have a connection that is gone."""

    def __init__(self, page, stale):
        self.page = page
        self.stale = stale
        self.asked = 0

    def __call__(self, environ, start_response):
        with urllib.request.urlopen(f"{self.page}/status.json") as answer:
            page = json.load(answer)
        self.asked += 1
        if self.asked <= self.stale:
            page["guards"][0]["holders"][0]["pid"] = 2**22 + 1
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(page).encode()]


@pytest.mark.parametrize("stale", [0, 1, 9])
def test_the_pages_are_read_again_if_a_connection_is_gone(postgres, table, stale):
    """A statement may have been stopped between the two readings; then its connection was replaced."""
    with service(postgres.url("psycopg")) as (engine, page), locked(postgres) as (_, end), waiting(engine):
        poll(lambda: "locks: 2," in str(found(postgres.url())[0].get("locks")), "both wait")
        pages = OfAnotherMoment(page, stale)
        with served(pages) as address:
            _, output = run(postgres.url(), "--status", address)
        end()
    assert pages.asked == min(2, 1 + stale)
    last = (
        "PostgreSQL: not seen: which sessions 1 of 2 connections of the service have: "
        "ended meanwhile or on another server"
    )
    assert output.splitlines()[0].startswith("PostgreSQL: sessions waiting for locks: 2")
    assert ("not seen" in output) == (stale == 9)
    assert stale < 9 or output.splitlines()[-1] == last


def test_a_wait_for_a_lock_that_is_over_is_shown_with_its_age(postgres, table):
    """While a circuit is open hardly anything waits, and the cause is still there."""
    engine = create_engine(postgres.url("psycopg"), pool_size=1, max_overflow=0)
    guard = protect(engine, name="db", timeout=3.0, max_wait_duration=0.02)
    with served(status_app([guard])) as page, locked(postgres) as (pid, _):
        with waiting(engine, 1):
            poll(lambda: guard.snapshot().in_use == 1, "it waits")
            poll(lambda: refused_by(engine) and waits_are_known(page), "the pool has asked the server", 10)
        findings, _ = found(postgres.url(), "--status", page)
        assert "locks" not in findings
        assert re.fullmatch(r"pool 'db' waited for locks \d+ s ago, and .*", findings["past_locks"]["what"])
        (words,) = findings["past_locks"]["details"]
        assert words.startswith("1 x cli/test_diagnose_service.py:")
        assert f"<- session {pid} of 'alembic'" in words
    engine.dispose()


def refused_by(engine):
    """Whether a further caller is refused, for which the pool asks the server."""
    with contextlib.suppress(RejectedError), engine.connect():
        return False
    return True


def waits_are_known(page):
    with urllib.request.urlopen(f"{page}/status.json") as answer:
        return any(each["event"] == "lock_waits" for each in json.load(answer)["events"])


def test_mariadb_is_joined_too(mariadb):
    """By the numbers and ports of the process list."""
    backend = BACKENDS["mariadb"](mariadb)
    with contextlib.closing(backend.connect()) as other:
        backend.run(other, "create table crowded (id int primary key) engine=innodb")
        backend.run(other, "insert into crowded values (1)")
        backend.run(other, "begin")
        backend.run(other, "select id from crowded for update")
        pid = backend.run(other, "select connection_id()")
        root = f"mysql+pymysql://root@127.0.0.1:{mariadb.port}/guardrails"
        try:
            options = {"connect_args": backend.connect_args("pymysql")}
            with service(backend.url("pymysql"), **options) as (engine, page), waiting(engine, 1):
                poll(lambda: "locks" in found(root)[0], "it waits", every=INNODB_REFRESH)
                findings, _ = found(root, "--status", page)
                backend.run(other, "rollback")
        finally:
            backend.run(other, "rollback")
            backend.run(other, "drop table crowded")
    assert findings["locks"]["details"][-1].startswith("1 x cli/test_diagnose_service.py:")
    assert f"<- session {pid}, idle in transaction" in findings["locks"]["details"][-1]


@pytest.mark.parametrize(
    "answer", [b"[]", b"{}", b'{"ready": 1, "reasons": [], "guards": [{"holders": [1]}]}']
)
def test_a_page_of_another_format_is_a_finding(postgres, answer):
    """It says that this is no status page; the findings about the server are there all the same."""

    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        return [answer]

    with served(application) as page:
        findings, _ = found(postgres.url(), "--status", page)
    assert findings["status_page"]["what"] == "status page 1: this is no status page of guardrails"


def test_a_service_that_does_not_answer_is_a_finding(postgres):
    """It exits with 1 and does not show the address."""
    with served(lambda *_: []) as page:
        pass
    code, output = run(postgres.url(), "--status", page)
    assert code == 1
    assert "status page 1: it does not answer: ConnectionRefusedError" in output
    assert page.rpartition(":")[2] not in output


@pytest.mark.parametrize("words", [["--status", "ftp://shop"], ["--show-sql"]])
def test_wrong_options_are_usage_errors(postgres, words):
    """Exit 2, before anything is asked."""
    code, output = run(postgres.url(), *words)
    assert code == 2
    assert "Error: " in output


# --- tables ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sleeping(server, database="postgres"):
    """A session whose statement holds a value of a user."""
    with psycopg.connect(server.url("", database), application_name="report", autocommit=True) as connection:

        def work():
            with contextlib.suppress(psycopg.Error):
                connection.execute(f"select pg_sleep(30), '{CANARY}'")

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.15)
        try:
            yield connection.info.backend_pid
        finally:
            connection.cancel()
            thread.join()


def test_tables_show_sessions_applications_and_long_statements(postgres, table):
    """Database, user, application, client, state and age of each session; no text of a statement."""
    with sleeping(postgres) as pid, locked(postgres) as (idle, _):
        _, answer = found(postgres.url(), "--all", "--slow", "0.1")
        _, output = run(postgres.url(), "--all", "--slow", "0.1")
    tables = answer["tables"]
    sessions = {row["pid"]: row for row in tables["sessions"]}
    assert sessions[pid]["database"] == sessions[pid]["user"] == "postgres"
    assert (sessions[pid]["application"], sessions[pid]["client"]) == ("report", "127.0.0.1")
    assert sessions[pid]["state"] == "active"
    assert sessions[idle]["state"] == "idle_in_transaction"
    assert 0.1 < sessions[pid]["seconds"] <= sessions[pid]["age"] + 0.1 < 30
    by_name = {row["application"]: row for row in tables["applications"]}
    assert by_name["report"] == by_name["report"] | {"connections": 1, "share": "1%", "active": 1}
    assert pid in {row["pid"] for row in tables["statements"]}
    assert "statement" not in tables["statements"][0]
    assert f"connections by application: {len(sessions)} of 97, and 3 reserved" in output
    assert re.search(r"\n +pid +database +user +application +client +state +seconds +age", output)


def test_text_of_statements_needs_a_flag(postgres):
    """``--show-sql`` shows it."""
    with sleeping(postgres):
        assert CANARY in run(postgres.url(), "--all", "--show-sql", "--slow", "0.1")[1]


def test_sessions_of_the_named_database_alone(postgres):
    """A database in the URL limits the sessions; connections by application are the server's."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create database elsewhere")
        try:
            with sleeping(postgres, "elsewhere") as pid:
                here = found(postgres.url(), "--all")[1]["tables"]
                there = found(postgres.url("psycopg", "elsewhere"), "--all")[1]["tables"]
        finally:
            connection.execute("drop database elsewhere with (force)")
    assert pid not in {row["pid"] for row in here["sessions"]}
    assert {row["pid"] for row in there["sessions"]} == {pid}
    assert "report" in {row["application"] for row in here["applications"]}


def test_aborted_connections_of_mariadb_are_counted(mariadb):
    """A client that goes without a word, and one with a wrong password."""
    root = f"mysql+pymysql://root@127.0.0.1:{mariadb.port}/guardrails"
    before = {row["counter"]: row["count"] for row in found(root, "--all")[1]["tables"]["aborted"]}
    gone = BACKENDS["mariadb"](mariadb).connect()
    gone._sock.shutdown(2)
    gone._force_close()
    run(root.replace("root@", "nosuch:nosuch@"))

    def counted():
        now = {row["counter"]: row["count"] for row in found(root, "--all")[1]["tables"]["aborted"]}
        return now["aborted_clients"] > before["aborted_clients"] and (
            now["aborted_connects"] > before["aborted_connects"]
        )

    poll(counted, "both are counted")


def test_clients_of_valkey_are_listed():
    """With the database that the URL names; names, ages and last commands, no keys."""
    with ValkeyServer.start() as valkey:
        client = redis.Redis(port=valkey.port, client_name="shop", db=3)
        client.set(CANARY, CANARY)
        url = f"redis://127.0.0.1:{valkey.port}"
        everyone = found(url, "--all")[1]["tables"]
        third = found(url + "/3", "--all")[1]["tables"]
        other = found(url + "/4", "--all")[1]["tables"]
        client.close()
    assert "shop" in {row["name"] for row in everyone["applications"]}
    assert {row["application"]: row["command"] for row in third["sessions"]}["shop"] == "set"
    assert "shop" not in {row["application"] for row in other["sessions"]}
