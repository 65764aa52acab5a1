"""The session of a connection that was taken back ends, also where the close does not reach the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg
import pymysql
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.util import await_only

from guardrails import ConnectionRevokedError
from guardrails._dbapi.drivers import find_driver
from guardrails._dbapi.session_end import end_sessions
from guardrails._pool import revoked_sessions
from guardrails._pool.revoked_sessions import RevokedSession, RevokedSessions
from guardrails._pool.sessions import SessionId
from guardrails.integrations.sqlalchemy._server_question import ServerQuestion
from guardrails.testing.pgbouncer import PgBouncer
from guardrails.testing.proxy import FaultProxy
from guardrails.testing.servers import PostgresServer
from support.mysql_server import MySQLServer
from support.polling import poll
from support.sql_lab import AsyncLab, Postgres

LIMIT = 0.1
"""Seconds for which a connection may be held idle here."""

LONGER = 3.0 if MySQLServer.installed() else 0.5
"""The same where a proxy hides the ports: a round trip must be shorter. MySQL counts whole seconds."""

SOON = 0.1
"""Seconds from a revocation to the question here."""


@pytest.fixture
def soon(monkeypatch):
    """Lets the server be asked at once."""
    monkeypatch.setattr(revoked_sessions, "_DELAY", SOON)
    monkeypatch.setattr(revoked_sessions, "_INTERVAL", SOON)


@pytest.fixture
def row(lab):
    """A row to lock."""
    lab.aside("drop table if exists held", "create table held (a int)", "insert into held values (1)")
    yield
    lab.dispose()
    lab.aside("drop table held")


class Split:
    """Two ways to the server. The first can swallow all that its connections send, their close included."""

    def __init__(self, lab, first, second):
        self.lab, self.first, self.second = lab, first, second
        self.port = first.port
        direct = lab.url
        lab.url = lambda port=None: direct(port or first.port)

    def guarded(self, **options):
        """Protects an engine whose new connections take the present way."""
        guard = self.lab.protect(guard={"max_idle_hold": LONGER, "timeout": 5.0, **options})
        engine = getattr(self.lab.engine, "sync_engine", self.lab.engine)
        event.listen(engine, "do_connect", self._connect)
        return guard

    def _connect(self, _dialect, _record, _args, params):
        params["port"] = self.port

    def swallow(self):
        """Loses what the connections of the first way send; new connections take the second."""
        self.first.hang("server")
        self.port = self.second.port


@pytest.fixture
def split(lab):
    with FaultProxy(lab.server.port) as first, FaultProxy(lab.server.port) as second:
        yield Split(lab, first, second)
        first.heal()
        lab.dispose()


def lines(caplog):
    """The warnings of the library about sessions."""
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    return [line for line in warnings if "their sessions" in line or "the sessions of" in line]


def hold_the_row(lab, split):
    """Locks the row on a connection whose close will be lost, and holds it idle until it is taken back."""

    def hold(session):
        session.execute("update held set a = 2")
        split.swallow()
        end = time.monotonic() + 10
        while lab.guard.snapshot().in_use:
            assert time.monotonic() < end
            pause(lab, 0.005)
        with pytest.raises(ConnectionRevokedError):
            session.commit()
        session.rollback()

    lab.run(hold)


def pause(lab, seconds):
    """Lets time pass inside a checkout."""
    if isinstance(lab, AsyncLab):
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


@pytest.mark.every_driver
def test_a_session_whose_close_is_swallowed_is_ended_over_another_connection(lab, row, split, soon, caplog):
    """Its row lock is gone a moment later; the log has a line without address, user and password."""
    split.guarded()
    hold_the_row(lab, split)
    assert lab.server_side("true") >= 1, "the close has not reached the server"
    poll(lambda: lab.pause(0.01) or lines(caplog), "the session was ended", 10)
    lab.aside("update held set a = 3")
    assert len(lines(caplog)) == 1
    assert "ended over another connection (1)" in lines(caplog)[0]
    assert "127.0.0.1" not in lines(caplog)[0]
    assert lab.soon("select a from held") == 3


@pytest.mark.every_driver
def test_a_server_that_sees_the_close_is_asked_and_told_nothing(lab, row, soon, caplog, monkeypatch):
    """The usual case: no line in the log, and nobody's session ends."""
    answers = []
    end = ServerQuestion.end
    monkeypatch.setattr(ServerQuestion, "end", lambda *args: answers.append(end(*args)))
    guard = lab.protect(guard={"max_idle_hold": LIMIT, "timeout": 5.0})
    beside = lab.backend.connect()
    with contextlib.closing(beside):
        for _ in range(2):
            lab.run(lambda session: (session.execute("update held set a = 2"), idle(lab, guard)))
        poll(lambda: lab.pause(0.01) or answers, "the server was asked")
        assert set(answers) == {0}
        assert lab.backend.run(beside, "select 42") == 42
    assert lines(caplog) == []


def idle(lab, guard):
    end = time.monotonic() + 10
    while guard.snapshot().in_use:
        assert time.monotonic() < end
        pause(lab, 0.005)


@pytest.mark.parametrize("lab", ["psycopg"], indirect=True)
def test_the_server_is_not_asked_where_that_is_off(lab, row, split, soon, caplog):
    """``ask_server=False``: the session stays until the server notices by itself."""
    split.guarded(ask_server=False)
    hold_the_row(lab, split)
    time.sleep(SOON * 5)
    assert lab.server_side("state = 'idle in transaction'") == 1
    assert split.second.accepted == 0


# --- never another's -------------------------------------------------------------------------------


@contextlib.contextmanager
def victim(lab, port):
    """A session of the lab's user that the test opens; yields it as the client knows it."""
    began = time.monotonic()
    if isinstance(lab.backend, Postgres):
        name, connection = "psycopg", psycopg.connect(lab.backend.url("", port).replace("+", ""))
    else:
        where = {"host": "127.0.0.1", "port": port, "user": "lab", "database": "guardrails"}
        name, connection = "pymysql", pymysql.connect(**where, ssl_disabled=True)
    opened = time.monotonic()
    with contextlib.closing(connection):
        known = find_driver(name, is_async=False).session_of(connection)
        time.sleep(0.2)
        now = time.monotonic()
        yield connection, RevokedSession(known, now, now - opened, now - opened, now - began)


STRANGERS = {
    "another number": lambda session: session._replace(
        id=SessionId(session.id.pid + 100_000, session.id.port)
    ),
    "a later one": lambda session: session._replace(idle=1e6, youngest=1e6, oldest=1e6 + 1),
    "an earlier one": lambda session: session._replace(idle=0.0, youngest=-60.0, oldest=-59.0),
    "idle for longer": lambda session: session._replace(idle=60.0),
    "another port": lambda session: session._replace(id=SessionId(session.id.pid, 1)),
}
"""What another session with the number would differ in. MySQL gives no number twice, so it has no earlier or
later ones; where it sees the port it needs nothing else. A later one is told by an age no server here has."""

FITTING = {
    ("postgres", "direct"): [],
    ("postgres", "proxy"): ["another port"],
    ("mariadb", "direct"): ["an earlier one", "idle for longer"],
    ("mariadb", "proxy"): ["an earlier one", "another port"],
}


@pytest.mark.parametrize("way", ["direct", "proxy"])
def test_a_session_that_may_be_another_one_s_is_not_ended(lab, way):
    """Only where all fits, the session ends; the port counts unless there is a proxy in between."""
    with FaultProxy(lab.server.port) as proxy:
        port = proxy.port if way == "proxy" else lab.server.port
        direct = lab.url
        lab.url = lambda: direct(port)
        lab.engine = lab.make_engine()
        engine = getattr(lab.engine, "sync_engine", lab.engine)
        driver = find_driver(engine.dialect.driver, is_async=engine.dialect.is_async)
        question = ServerQuestion(engine, driver)
        kind = "postgres" if engine.dialect.name == "postgresql" else "mariadb"
        with victim(lab, port) as (connection, known):
            assert question.end([]) == 0
            time.sleep(LONGER)  # it has run nothing since, so only what differs can save it
            for name, change in STRANGERS.items():
                if name not in FITTING[kind, way]:
                    assert question.end([change(known)]) == 0, name
            assert lab.backend.run(connection, "select 42") == 42
            used = time.monotonic()
            time.sleep(LONGER)
            now = time.monotonic()
            youngest = now - known.at + known.youngest
            right = known._replace(at=now, idle=now - used, youngest=youngest, oldest=youngest + 0.2)
            assert question.end([STRANGERS["another number"](known), right]) == 1
            with pytest.raises((psycopg.OperationalError, pymysql.OperationalError)):
                lab.backend.run(connection, "select 42")


@pytest.mark.every_driver
def test_a_session_that_a_pooler_has_given_to_another_client_is_not_ended(lab):
    """pgpool-II passes the servers' numbers on, and keeps the session of a client that has gone for the next.

    A proxy stands for it here: the server sees its ports, not the clients'.
    """
    with FaultProxy(lab.server.port) as pooler:
        direct = lab.url
        lab.url = lambda: direct(pooler.port)
        lab.engine = lab.make_engine()
        engine = getattr(lab.engine, "sync_engine", lab.engine)
        driver = find_driver(engine.dialect.driver, is_async=engine.dialect.is_async)
        question = ServerQuestion(engine, driver)
        with victim(lab, pooler.port) as (connection, revoked):
            for work in ("select 42", "begin", "select 42"):
                lab.backend.run(connection, work)
                assert question.end([revoked]) == 0, work
            began, running = threading.Event(), []

            def statement():
                began.set()
                running.append(lab.backend.run(connection, SLOW[engine.dialect.name]))

            thread = threading.Thread(target=statement)
            thread.start()
            assert began.wait(5)
            lab.pause(0.3)
            assert question.end([revoked]) == 0, "a statement runs"
            thread.join()
            assert running
            assert lab.backend.run(connection, "select 42") == 42


SLOW = {"postgresql": "select 42 from pg_sleep(0.8)", "mysql": "select 42 from (select sleep(0.8)) waited"}
"""A statement that runs for a while."""


def end_over(asker, *sessions):
    """Asks over a connection of psycopg's."""
    known = find_driver("psycopg", is_async=False).session_of(asker)
    return end_sessions("postgresql", known, lambda sql: asker.execute(sql).fetchall(), sessions)


def test_the_question_does_not_end_itself(postgres):
    """A pooler may give the session that is looked for to the connection that asks."""
    began = time.monotonic()
    with psycopg.connect(postgres.url(""), autocommit=True) as asker:
        now = time.monotonic()
        known = find_driver("psycopg", is_async=False).session_of(asker)
        assert end_over(asker, RevokedSession(known, now, 0.0, 0.0, now - began)) == 0
        assert asker.execute("select 42").fetchone() == (42,)


def test_a_session_of_a_unix_socket_is_ended_if_it_has_run_nothing():
    """All clients of a Unix socket have one port, so it proves nothing."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="guardrails-socket-"))
        Path(place).chmod(0o777)  # the server may run as another user
        server = stack.enter_context(PostgresServer.start(settings={"unix_socket_directories": place}))
        where = psycopg.conninfo.make_conninfo(server.url(""), host=place)
        began = time.monotonic()
        with psycopg.connect(where, autocommit=True) as other:
            opened = time.monotonic()
            known = find_driver("psycopg", is_async=False).session_of(other)
            assert known.port is None

            def revoke():
                time.sleep(LONGER)
                now = time.monotonic()
                return RevokedSession(known, now, LONGER, now - opened, now - began)

            with psycopg.connect(where, autocommit=True) as asker:
                revoked = revoke()
                other.execute("select 42")
                assert end_over(asker, revoked) == 0
                assert other.execute("select 42").fetchone() == (42,)
                assert end_over(asker, revoke()) == 1
                with pytest.raises(psycopg.OperationalError):
                    other.execute("select 42")


@pytest.mark.parametrize("lab", ["psycopg", "asyncpg"], indirect=True)
def test_another_user_s_session_is_not_ended(lab):
    """Also if the number and the age fit."""
    lab.aside("create role stranger superuser login")
    try:
        lab.engine = lab.make_engine()
        engine = getattr(lab.engine, "sync_engine", lab.engine)
        driver = find_driver(engine.dialect.driver, is_async=engine.dialect.is_async)
        began = time.monotonic()
        with psycopg.connect(lab.backend.server.url(""), user="stranger") as other:
            opened = time.monotonic()
            known = find_driver("psycopg", is_async=False).session_of(other)
            session = RevokedSession(known, opened, 0.0, 0.0, opened - began)
            assert ServerQuestion(engine, driver).end([session]) == 0
            assert other.execute("select 42").fetchone() == (42,)
    finally:
        lab.aside("drop role stranger")


def test_behind_a_pooler_nothing_is_ended(postgres):
    """Its clients have numbers that are no server's, or another client's."""
    with PgBouncer.start(postgres) as pooler:
        url = postgres.url("psycopg").replace(str(postgres.port), str(pooler.port))
        engine = create_engine(url)
        driver = find_driver("psycopg", is_async=False)
        began = time.monotonic()
        with engine.connect() as connection:
            own = connection.connection.driver_connection
            opened = time.monotonic()
            pid = connection.execute(text("select pg_backend_pid()")).scalar()
            for number in (pid, driver.session_of(own).pid):
                session = RevokedSession(SessionId(number, None), opened, 0.0, 0.0, opened - began)
                assert ServerQuestion(engine, driver).end([session]) == 0
            assert connection.execute(text("select 42")).scalar() == 42
        engine.dispose()


# --- a server that cannot be reached -----------------------------------------------------------------


def test_a_server_that_does_not_answer_is_asked_for_a_while(soon, caplog, monkeypatch):
    """Then the log says what becomes of the sessions; a later one is asked for again."""
    monkeypatch.setattr(revoked_sessions, "_GIVE_UP_AFTER", SOON * 3.5)
    asked, answered = [], []

    def end(sessions):
        asked.append(len(sessions))
        if not answers:
            raise OSError("password=hunter2")
        answered.append(len(sessions))
        return 0

    answers = False

    sessions = RevokedSessions("unreachable", lambda own: SessionId(own, None), end)
    for number in (1, 2):
        sessions.identify(number, 0.1, 0.2, 0.3)()

    def of_this():  # another test's server may have gone before it was asked
        return [line for line in lines(caplog) if "'unreachable'" in line]

    poll(of_this, "the line")
    assert len(asked) > 1
    assert "have ended (2)" in of_this()[0]
    assert "TCP keepalive" in of_this()[0]
    assert "hunter2" not in caplog.text
    before = len(asked)
    sessions.identify(3, 0.1, 0.2, 0.3)()
    poll(lambda: len(asked) > before, "asked again")
    assert asked[-1] == 1
    answers = True  # or the next test would have a line about it
    poll(lambda: answered or len(of_this()) > 1, "it is answered, or given up")


def test_one_server_that_does_not_answer_keeps_no_other_from_the_question(soon, caplog):
    """The sessions of the others are ended and counted; only its own are asked for again."""
    asked = []

    def end(sessions):
        asked.append((sessions[0].login, len(sessions)))
        if sessions[0].login == "dead":
            raise OSError
        return len(sessions)

    sessions = RevokedSessions("several", lambda own: SessionId(own, None), end)
    for number, login in enumerate(("dead", "replica", "dead", "primary")):
        sessions.identify(number, 0.1, 0.2, 0.3, login)()
    poll(lambda: len(asked) > 4, "the dead one is asked again")
    assert asked[:3] == [("dead", 2), ("replica", 1), ("primary", 1)]
    assert set(asked[3:]) == {("dead", 2)}
    assert ["ended over another connection (2)" in line for line in lines(caplog) if "'several'" in line] == [
        True
    ]


@pytest.mark.parametrize("line", [1, 2, 3])
def test_revocations_at_once_plan_one_question(monkeypatch, line):
    """Two questions at once would take the sessions from each other."""
    planned, asked = [], []
    monkeypatch.setattr(revoked_sessions, "run_later", lambda task, seconds: planned.append(task))
    sessions = RevokedSessions("db", lambda own: SessionId(own, None), lambda each: asked.extend(each) or 0)
    run = []

    def interleave(frame, event, _arg):
        """Has another thread revoke a connection before this line of the plan."""
        if frame.f_code is RevokedSessions._plan.__code__ and event == "line":
            run.append(frame.f_lineno)
            if len(run) == line:
                thread = threading.Thread(target=sessions.identify(2, 0.1, 0.2, 0.3))
                thread.start()
                thread.join()
        return interleave

    tracing = sys.gettrace()
    sys.settrace(interleave)
    try:
        sessions.identify(1, 0.1, 0.2, 0.3)()
    finally:
        sys.settrace(tracing)
    assert len(planned) == 1
    sessions._ask()
    assert [session.id.pid for session in asked] == [1, 2]


def test_a_child_process_asks_for_none_of_its_parent_s_sessions(soon):
    """It forgets them; its own are asked for."""
    asked = []
    sessions = RevokedSessions("db", lambda own: SessionId(own, None), lambda each: asked.extend(each) or 0)
    sessions.identify(1, 0.1, 0.2, 0.3)()
    sessions.reset_in_child()
    sessions.identify(2, 0.1, 0.2, 0.3)()
    poll(lambda: asked, "asked for its own")
    assert [session.id.pid for session in asked] == [2]


def test_a_clock_that_runs_wild_makes_no_wrong_statement():
    """The idle time is the guard's clock's; what cannot be is not used."""
    kept = []
    sessions = RevokedSessions("db", lambda own: SessionId(own, None), kept.append)
    for idle_time in (float("nan"), float("inf"), -5.0, 3.0, 0.5):
        watch = sessions.identify(1, idle_time, 1.0, 2.0)
        session = watch.args[0]
        assert session.idle == (0.5 if idle_time == 0.5 else 0.0)
        least, most = session.ages(1.0)
        assert 0.5 <= least <= 1.0 + session.passed
        assert most >= 3.0


@pytest.mark.parametrize("lab", ["psycopg", "asyncpg", "pymysql"], indirect=True)
def test_where_neither_way_is_open_nobody_waits(lab, row, split, soon):
    """The question has a thread of its own: callers and other revocations go on meanwhile."""
    guard = split.guarded()
    hold_the_row(lab, split)
    split.second.hang()
    split.port = lab.server.port
    poll(lambda: lab.pause(0.01) or guard.snapshot().in_use == 0, "the slot is back")
    assert lab.soon() == 42
    lab.run(lambda session: (session.execute("select 1"), idle(lab, guard)))
    split.second.heal()
