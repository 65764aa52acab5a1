"""What is MariaDB's own: its errors, the KILL over a second connection, the backstop, a server that dies.

MySQL has all of it but the backstop.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time

import pymysql
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from guardrails import CallTimeoutError, protect
from guardrails._dbapi.drivers import find_driver
from guardrails._dbapi.drivers.mysql import Target, server_failed
from support.mysql_server import MySQLServer, skip_on_mysql, start_mariadb
from support.paths import DOCS
from support.polling import poll
from support.sql_lab import INNODB_REFRESH, MariaDB, drivers, laboratory


@pytest.fixture
def table(maria_lab):
    """Five rows nobody else uses."""
    maria_lab.aside(
        "drop table if exists pair",
        "create table pair (id int primary key, n int not null default 0) engine=innodb",
        "insert into pair (id) values (1), (2), (3), (4), (5)",
    )
    yield "pair"
    maria_lab.aside("drop table pair")


@pytest.fixture
def own_maria():
    """A server of this test's own, to be mistreated."""
    with start_mariadb() as server:
        with MariaDB(server).connect() as connection:
            MariaDB.run(connection, "create user lab@'127.0.0.1'")
            MariaDB.run(connection, "grant all on guardrails.* to lab@'127.0.0.1'")
        yield server


@pytest.fixture(params=drivers("mariadb"))
def own_lab(request, own_maria):
    """The lab on that server."""
    with laboratory(request.param, own_maria) as lab:
        yield lab


# --- evidence ---------------------------------------------------------------------------------------


def run_each(*statements):
    def provoke(lab, session):
        for sql in statements:
            session.execute(sql)

    return provoke


def deadlock(lab, session):
    """Two transactions want each other's row; ours has changed less and is the one to go."""
    run = MariaDB.run
    with lab.backend.connect() as other:
        run(other, "begin")
        run(other, "update pair set n = n + 1 where id = 1")
        run(other, "insert into pair (id) values (11), (12), (13), (14), (15)")
        session.execute("update pair set n = n + 1 where id = 2")
        rival = threading.Thread(target=run, args=(other, "update pair set n = n + 1 where id = 2"))
        rival.start()
        waiting = "select count(*) from information_schema.innodb_trx where trx_state = 'LOCK WAIT'"
        poll(lambda: lab.aside(waiting) == 1, "the rival waits for our row", every=INNODB_REFRESH)
        try:
            session.execute("update pair set n = n + 1 where id = 1")
        finally:
            rival.join()


def lock_wait(lab, session):
    session.execute("set innodb_lock_wait_timeout = 1")
    with lab.backend.connect() as other:
        MariaDB.run(other, "begin")
        MariaDB.run(other, "update pair set n = 1 where id = 1")
        session.execute("update pair set n = 2 where id = 1")


def read_only_server(lab, session):
    lab.aside("set global read_only = 1")
    try:
        session.execute("update pair set n = 1")
    finally:
        lab.aside("set global read_only = 0")


def killed(what):
    def provoke(lab, session):
        number = session.execute("select connection_id()")
        killer = threading.Timer(0.3, lambda: lab.aside(f"kill {what} {number}"))
        killer.start()
        try:
            session.execute("select 1 from dual where sleep(20) = 0")
        finally:
            killer.join()

    return provoke


def overtaken(lab, session):
    """What MariaDB has of a serialization failure besides the deadlock: a snapshot that has grown old."""
    lab.skip_on_mysql("has no innodb_snapshot_isolation: it lets the update pass")
    session.execute("set innodb_snapshot_isolation = on")
    session.execute("select n from pair where id = 1")
    lab.aside("update pair set n = n + 1 where id = 1")
    session.execute("update pair set n = n + 1 where id = 1")


def full_table(lab, session):
    session.execute("set max_heap_table_size = 16384")
    session.execute("create temporary table tiny (filling char(255)) engine=memory")
    session.execute("insert into tiny select 'x' from generate_series(1, 1000) n")


ANSWERS = {
    "duplicate": (run_each("insert into pair values (1, 1)"), 1062),
    "null": (run_each("insert into pair values (9, null)"), 1048),
    "syntax": (run_each("selekt 1"), 1064),
    "no such table": (run_each("select * from nowhere"), 1146),
    "no privilege": (run_each("select * from mysql.user"), 1142),
    "raised by a trigger": (run_each("signal sqlstate '45000' set message_text = 'no'"), 1644),
    "read-only transaction": (run_each("set transaction read only", "update pair set n = 1"), 1792),
    "deadlock": (deadlock, 1213),
    "lock wait timeout": (lock_wait, 1205),
    "overtaken by another": (overtaken, 1020),
}
FAULTS = {
    "KILL QUERY": (killed("query"), {1317}),
    "read-only server": (read_only_server, {1290}),
    "KILL": (killed("connection"), {1317, 1927, 2013}),
    "max_statement_time": (
        run_each("set max_statement_time = 0.1", "select 1 from dual where sleep(20) = 0"),
        {1969, 3024},  # the second is MySQL's, of max_execution_time
    ),
    "table full": (full_table, {1114}),
}


def provoked(lab, provoke):
    """Runs it on a connection that is there already; returns the code and how many failures it was."""
    lab.protect(guard={"timeout": 30})
    lab.query("select 1")
    with pytest.raises(DBAPIError) as caught:
        lab.run(lambda session: provoke(lab, session))
    return caught.value.orig.args[0], lab.guard.snapshot().failed


@pytest.mark.sampled
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_prove_that_the_server_is_alive(maria_lab, table, name):
    """What is wrong with a statement is no failure of the server."""
    provoke, code = ANSWERS[name]
    assert provoked(maria_lab, provoke) == (code, 0)
    assert maria_lab.query("select 1") == 1


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_failures(maria_lab, name):
    """What the server did or lacked is its failure."""
    provoke, codes = FAULTS[name]
    code, failures = provoked(maria_lab, provoke)
    assert (code in codes, failures) == (True, 1), f"it said {code}"
    assert maria_lab.query("select 1") == 1


@contextlib.contextmanager
def crowded(lab):
    """Every connection the server has is taken."""
    run = lab.backend.run
    # The limit is lifted over a connection from before: closed ones leave the server a moment later.
    with lab.backend.connect() as control, contextlib.ExitStack() as stack:
        before = run(control, "select @@max_connections")
        run(control, "set global max_connections = 10")
        stack.callback(run, control, f"set global max_connections = {before}")
        for _ in range(9):
            stack.enter_context(lab.backend.connect())
        yield 1040


@contextlib.contextmanager
def rationed(lab):
    """Every connection the user may have is taken."""
    lab.aside("alter user lab@'127.0.0.1' with max_user_connections 1")
    address = {"host": "127.0.0.1", "port": lab.server.port, "user": "lab"}
    try:
        with pymysql.connect(**address, ssl_disabled=True):
            yield 1226
    finally:
        lab.aside("alter user lab@'127.0.0.1' with max_user_connections 0")


@contextlib.contextmanager
def locked_out(lab):
    """The password is another one."""
    lab.aside("alter user lab@'127.0.0.1' identified by 'other'")
    yield 1045
    lab.aside("alter user lab@'127.0.0.1' identified by ''")


@pytest.mark.parametrize("obstacle", [crowded, rationed, locked_out])
def test_a_refused_connection_is_a_failure(maria_lab, obstacle):
    """Whatever keeps us from connecting is the server's doing."""
    lab = maria_lab
    lab.protect()
    with obstacle(lab) as code:
        with pytest.raises(DBAPIError) as caught:
            lab.query("select 1")
        assert caught.value.orig.args[0] == code
        assert lab.guard.snapshot().failed == 1
        assert lab.pool.checkedout() == 0
    assert lab.query("select 1") == 1


def test_errors_without_a_code_are_left_to_their_class():
    """Errors without a code are left to the class of the error."""
    for error in (Exception(), pymysql.err.InterfaceError(0, ""), ValueError("1205"), OSError("gone")):
        assert server_failed(error) is None


def test_the_page_lists_the_codes_of_failures():
    """docs/reference/drivers.md and the code know the same ones."""
    page = (DOCS / "reference" / "drivers.md").read_text()
    table = page.split("| failures | codes |")[1].split("\n\n")[0]
    listed = set()
    for first, last in re.findall(r"(\d{4})(?:-(\d{4}))?", table):
        listed.update(range(int(first), int(last or first) + 1))
    assert listed == {code for code in range(1, 10_000) if server_failed(Exception(code))}


# --- a server that dies ------------------------------------------------------------------------------


@pytest.mark.sampled(1)
def test_a_killed_server_fails_at_once_and_is_found_again(own_lab):
    """kill -9: statements under way fail at once; after the restart the pool serves again."""
    lab = own_lab
    lab.protect()
    with lab.meanwhile(lambda: lab.query("select 1 from pg_sleep(20)"), count=2) as results:
        lab.pause(0.5)
        start = time.monotonic()
        lab.server.kill()
    assert time.monotonic() - start < 3.0
    assert [type(result).__name__ for result in results] == ["OperationalError"] * 2
    assert lab.guard.snapshot().failed == 2
    with pytest.raises(DBAPIError):
        lab.query("select 1")
    lab.server.restart()
    assert lab.query("select 7") == 7
    assert lab.pool.checkedout() == lab.guard.snapshot().in_use == 0


@pytest.mark.sampled(1)
def test_shutdown_is_a_failure(own_lab):
    """A statement that the server's going down cuts short did not get its answer."""
    lab = own_lab
    lab.protect(guard={"timeout": 30})
    with lab.meanwhile(lambda: lab.query("select 1 from pg_sleep(20)")) as results:
        poll(lambda: lab.pause(0.01) or lab.running() == 1, "the statement runs")
        lab.server.restart()
    assert results[0].orig.args[0] in {1053, 1317, 1927, 2006, 2013}
    # MySQL answers the statement; then the ROLLBACK finds the connection lost.
    assert lab.guard.snapshot().failed in ({1, 2} if isinstance(lab.server, MySQLServer) else {1})
    assert lab.query("select 42") == 42


@pytest.mark.slow
def test_a_restarted_server_costs_one_failure_and_no_slot(own_lab):
    """Idle connections the restart has closed are found out on their next use, or by a pre-ping."""
    lab = own_lab
    lab.protect(pool_pre_ping=True)
    lab.query("select 1")
    lab.server.restart()
    assert lab.query("select 8") == 8
    assert lab.pool.checkedout() == lab.guard.snapshot().in_use == 0


@pytest.mark.slow
@pytest.mark.parametrize("own_lab", drivers("mariadb", is_async=False), indirect=True)
def test_connecting_is_bounded(own_lab):
    """Callers of a frozen server share one connect, whose thread ends when the server is back."""
    lab = own_lab
    lab.protect(guard={"timeout": 0.3})

    def helpers():
        return [thread for thread in threading.enumerate() if thread.name == "guardrails-connect"]

    with lab.frozen():
        for _ in range(3):
            with pytest.raises(CallTimeoutError):
                lab.query("select 1")
        assert len(helpers()) == 1
    assert lab.soon("select 1") == 1
    poll(lambda: not helpers(), "no thread waits for the server any more", 10.0)
    # From there on no read of the driver's own is bounded: deadlines are.
    assert lab.run(lambda session: session.connection.connection.driver_connection._read_timeout) is None


# --- the KILL ------------------------------------------------------------------------------------------

SEEN = [
    # the list of the server, our two ends, whether it is ours
    ([(7, "10.0.0.1:4001"), (9, "10.0.0.1:4002")], 4001, 4002, True),
    ([(9, "10.0.0.1:4002")], 4001, 4002, False),  # it has ended, or another server answers
    ([(7, "10.0.0.9:4001"), (9, "10.0.0.1:4002")], 4001, 4002, False),  # a stranger of that number
    ([(7, "10.0.0.1:5555"), (9, "10.0.0.1:4002")], 4001, 4002, False),  # likewise, on our own host
    ([(7, "10.0.0.1:900"), (9, "10.0.0.1:901")], 4001, 4002, True),  # behind address translation
    ([(7, "10.0.0.9:900"), (9, "10.0.0.1:901")], 4001, 4002, False),
    ([(7, "web1:4001"), (9, "web1:4002")], 4001, 4002, True),  # the server looks names up
    ([(7, "localhost"), (9, "localhost")], None, None, True),  # a Unix socket
]


@pytest.mark.parametrize(("rows", "port", "messenger", "ours"), SEEN)
def test_only_our_own_connection_is_recognised(rows, port, messenger, ours):
    """A number alone may be a stranger's: behind one name may be several servers."""
    assert Target(7, port).is_among(rows, Target(9, messenger)) is ours


@pytest.mark.sampled(1)
def test_kills_never_stop_another_statement(maria_lab):
    """Beside statements about as long as their limit, other statements have time and all succeed."""
    lab = maria_lab
    lab.protect(
        pool_size=6, max_overflow=2, guard={"breaker": None, "max_wait_duration": 5.0, "max_waiting": 50}
    )
    innocent, hurried = [], []

    def ask(number):
        if number % 2:
            return lambda: lab.query(f"select {number} from pg_sleep(0.03)")
        return lambda: lab.query(f"select {number} from pg_sleep({0.02 + number % 7 * 0.005})", timeout=0.035)

    for start in range(0, 240, 6):
        numbers = range(start, start + 6)
        for number, answer in zip(numbers, lab.all([ask(number) for number in numbers]), strict=True):
            (innocent if number % 2 else hurried).append((number, answer))
    assert [answer for _, answer in innocent] == [number for number, _ in innocent]
    stopped = [answer for _, answer in hurried if isinstance(answer, CallTimeoutError)]
    assert 0 < len(stopped) < len(hurried)
    assert all(answer == number for number, answer in hurried if answer not in stopped)
    assert lab.pool.checkedout() == lab.guard.snapshot().in_use == 0


@pytest.mark.parametrize("maria_lab", drivers("mariadb", is_async=True), indirect=True)
def test_warnings_of_the_server_to_the_second_connection_are_ignored(maria_lab, caplog):
    """MySQL warns of the question before each KILL: no warning of Python and no line of the log follows."""
    lab = maria_lab
    lab.protect()
    driver = find_driver(lab.driver, is_async=True)

    async def ask(connection):
        async with driver._cursor(connection) as cursor:
            await cursor.execute("select cast('x' as signed)")
            return await cursor.fetchall()

    def work(session):
        return await_only(ask(session.connection.connection.driver_connection))

    assert [tuple(row) for row in lab.run(work)] == [(0,)]
    assert [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING] == []


# --- the backstop ----------------------------------------------------------------------------------------

NO_BACKSTOP = "has no limit for every statement, as max_statement_time is"


@pytest.mark.sampled(1)
def test_the_server_ends_a_statement_that_cannot_be_killed(own_lab):
    """With no connection left for a KILL the socket is cut, and the backstop ends the statement."""
    lab = own_lab
    lab.skip_on_mysql(NO_BACKSTOP)
    lab.aside("alter user lab@'127.0.0.1' with max_user_connections 1")
    lab.protect(pool_size=1, max_overflow=0, guard={"timeout": 0.4})
    with pytest.raises(CallTimeoutError):
        lab.query("select 1 from pg_sleep(20)")
    lab.pause(0.1)
    assert lab.running() == 1, "the server works on for a client that is gone"
    poll(lambda: lab.running() == 0, "the backstop of four timeouts has ended it", 4.0)


def test_a_longer_limit_lifts_the_backstop(maria_lab):
    """A statement that asks for more than the backstop gets it, in the same round trip."""
    maria_lab.skip_on_mysql(NO_BACKSTOP)
    maria_lab.protect(guard={"timeout": 0.2})
    assert float(maria_lab.query("show statement_timeout")) == pytest.approx(0.8)
    assert maria_lab.query("select 6 from pg_sleep(1.2)", timeout=5) == 6
    assert float(maria_lab.query("select @@max_statement_time", timeout=5)) == pytest.approx(5)
    assert float(maria_lab.query("show statement_timeout")) == pytest.approx(0.8)


def test_a_lower_limit_of_the_servers_own_stays(maria_lab):
    """The backstop never gives a statement more time than the server's own limit."""
    maria_lab.skip_on_mysql(NO_BACKSTOP)
    maria_lab.aside("set global max_statement_time = 3")
    try:
        maria_lab.protect(guard={"timeout": 5})
        assert float(maria_lab.query("show statement_timeout")) == pytest.approx(3)
    finally:
        maria_lab.aside("set global max_statement_time = 0")


@pytest.mark.parametrize(("before", "left"), [(None, 0), ("set session max_statement_time = 3", 3)])
def test_a_stream_has_the_limit_of_the_server_or_the_user(mariadb, before, left):
    """The server's own, or the user's; and the next statement has the backstop again."""
    skip_on_mysql(mariadb, NO_BACKSTOP)
    arguments = {"ssl_disabled": True} | ({"init_command": before} if before else {})
    engine = create_engine(MariaDB(mariadb).url("pymysql"), connect_args=arguments)
    protect(engine)
    asked = text("select @@max_statement_time")
    with engine.connect() as connection:
        streamed = connection.execute(asked, execution_options={"stream_results": True}).scalar()
        usual = connection.execute(asked).scalar()
    engine.dispose()
    assert (float(streamed), float(usual)) == (left, left or 20)


def test_a_users_own_first_command_stays(mariadb):
    """``init_command`` is the user's; the backstop does not replace it."""
    arguments = {"init_command": "set @mine = 5", "ssl_disabled": True, "read_timeout": 7}
    engine = create_engine(MariaDB(mariadb).url("pymysql"), connect_args=arguments)
    db = protect(engine)
    with engine.connect() as connection:
        assert connection.execute(text("select @mine")).scalar() == 5
        limit = MariaDB(mariadb).say("show statement_timeout")
        assert float(connection.execute(text(limit)).scalar()) == 0
        assert connection.connection.driver_connection._read_timeout == 7
    engine.dispose()
    assert db.snapshot().in_use == 0


def test_a_kept_deadline_sends_nothing(maria_lab):
    """The server sees as many statements from a guarded engine as from a bare one."""

    def work(session):
        asked = (
            "select variable_value from information_schema.session_status where variable_name = 'Questions'"
        )
        before = int(session.execute(asked))
        for number in range(10):
            session.execute(f"select {number}", timeout=2)
            session.commit()
        return int(session.execute(asked)) - before

    maria_lab.engine = maria_lab.make_engine()
    bare = maria_lab.run(work)
    maria_lab.guard = protect(maria_lab.engine, name="db")
    assert maria_lab.run(work) == bare
