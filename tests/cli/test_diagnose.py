"""``guardrails diagnose`` on real servers in trouble: what it finds, what it says, what it never shows."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import socket
import threading
import time

import psycopg
import pytest
import redis
from click.testing import CliRunner
from sqlalchemy import make_url

from guardrails.cli.diagnose import diagnose
from guardrails.diagnosis import drivers
from guardrails.diagnosis.asking import words
from guardrails.diagnosis.drivers import with_driver
from guardrails.diagnosis.findings import Facts, Session, judge
from guardrails.errors import ConfigurationError
from guardrails.testing.servers import PostgresServer, ValkeyServer
from support.mysql_server import MySQLServer, start_mariadb
from support.polling import poll
from support.sql_lab import BACKENDS, INNODB_REFRESH

CANARY = "canary-7b2e"


def run(*words, env=None):
    """Runs the command; its exit code and what it printed."""
    done = CliRunner().invoke(diagnose, [*map(str, words)], env={"DATABASE_URL": None, **(env or {})})
    assert CANARY not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def found(url, *words):
    """The kinds of what was found, and each finding."""
    code, output = run(url, "--json", *words)
    findings = {finding["kind"]: finding for finding in json.loads(output)["findings"]}
    assert code == bool(findings)
    return findings


@contextlib.contextmanager
def another(server, statement, name="shop"):
    """A session in a transaction of its own, which has just said something; and the same in a thread."""
    with psycopg.connect(server.url(""), application_name=name) as connection:
        connection.execute(statement)
        yield connection
        connection.rollback()


@contextlib.contextmanager
def at_work(server, statement, name="shop"):
    """A session whose statement is under way; it is cancelled at the end."""
    with psycopg.connect(server.url(""), application_name=name, autocommit=True) as connection:

        def work():
            with contextlib.suppress(psycopg.Error):
                connection.execute(statement)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            connection.cancel()
            thread.join()


@pytest.fixture
def table(postgres):
    """A table to lock."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create table crowded (id int)")
        yield
        connection.execute("drop table crowded")


def test_healthy_server_has_no_findings(postgres):
    """Exit 0 and one line, whatever driver the application uses."""
    for driver in ("psycopg", "asyncpg", "psycopg2"):
        assert run(postgres.url(driver)) == (0, "PostgreSQL: nothing found.\n")
    assert run(env={"DATABASE_URL": postgres.url("asyncpg")})[0] == 0


def test_holder_of_a_lock_is_named(postgres, table):
    """Two wait behind one: it is named, with what it does, and so is the table."""
    lock = "lock table crowded in access exclusive mode"
    with another(postgres, lock, "migration") as blocker:
        pid = blocker.info.backend_pid
        with at_work(postgres, f"select '{CANARY}' from crowded"), at_work(postgres, "select 1 from crowded"):
            poll(lambda: "locks: 2," in found(postgres.url()).get("locks", {}).get("what", ""), "both wait")
            finding = found(postgres.url())["locks"]
            code, output = run(postgres.url())
    assert f"2 behind session {pid} of 'migration', idle in transaction for" in finding["details"][0]
    assert finding["details"][1] == "for 'crowded'"
    assert code == 1
    assert "PostgreSQL: sessions waiting for locks: 2, for up to" in output
    assert "end the transaction that holds them: " in output


def test_idle_transactions_are_named(postgres):
    """A session that began something and does something else."""
    with another(postgres, f"select '{CANARY}'", "worker"):
        time.sleep(0.15)
        finding = found(postgres.url(), "--slow", "0.1")["idle_in_transaction"]
        assert "of 'worker'" in finding["details"][0]
        assert "idle_in_transaction" not in found(postgres.url(), "--slow", "60")


def test_user_without_rights_sees_no_others(postgres):
    """PostgreSQL hides what they do; the page says which right it takes."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create role plain login")
        try:
            with another(postgres, "select 1", "worker"):
                time.sleep(0.15)
                url = postgres.url().replace("postgres@", "plain@")
                assert "idle_in_transaction" in found(postgres.url(), "--slow", "0.1")
                assert found(url, "--slow", "0.1") == {}
                connection.execute("grant pg_monitor to plain")
                assert "idle_in_transaction" in found(url, "--slow", "0.1")
        finally:
            connection.execute("drop role plain")


def test_waiters_are_seen_without_rights_and_unseen_facts_are_listed(postgres, table):
    """All users may read pg_locks: waiters and blockers are named, their activity is not."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create role plain login")
        try:
            lock = "lock table crowded in access exclusive mode"
            url = postgres.url().replace("postgres@", "plain@")
            with another(postgres, lock, "migration") as blocker, at_work(postgres, "select 1 from crowded"):
                pid = blocker.info.backend_pid
                poll(lambda: "locks" in found(url), "it waits")
                finding = found(url)["locks"]
                code, output = run(url)
        finally:
            connection.execute("drop role plain")
    assert finding["details"][0] == f"1 behind session {pid} of 'migration'"
    assert code == 1
    assert re.search(
        r"PostgreSQL: not seen: what \d of \d sessions do: that takes the role pg_monitor", output
    )


def test_nothing_found_names_the_facts_that_could_not_be_seen(postgres):
    """A user without pg_monitor hears how much he could not see; exit code 0, for nothing was found."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create role plain login")
        try:
            code, output = run(postgres.url().replace("postgres@", "plain@"))
            assert json.loads(run(postgres.url(), "--json")[1])["unseen"] == []
        finally:
            connection.execute("drop role plain")
    assert code == 0
    nothing, unseen = output.splitlines()
    assert re.fullmatch(
        r"PostgreSQL: not seen: what \d+ of \d+ sessions do: that takes .* pg_monitor", unseen
    )
    assert nothing == "PostgreSQL: nothing found in what could be seen."


def test_blocker_is_named_once(postgres, table):
    """The advice on its open transaction points to the locks, not to a pool; what ends it is there."""
    lock = "lock table crowded in access exclusive mode"
    with another(postgres, lock, "migration") as blocker, at_work(postgres, "select 1 from crowded"):
        pid = blocker.info.backend_pid
        poll(lambda: len(found(postgres.url(), "--slow", "0.1")) > 1, "it waits")
        findings = found(postgres.url(), "--slow", "0.1")
        assert f"SELECT pg_terminate_backend({pid})" in findings["locks"]["advice"]
        assert findings["idle_in_transaction"]["details"][0].endswith(", which holds the locks above")
        assert "pool_status" not in findings["idle_in_transaction"]["advice"]
        with another(postgres, "select 1", "worker"):
            time.sleep(0.15)
            findings = found(postgres.url(), "--slow", "0.1")
            assert "pool_status(engine)" in findings["idle_in_transaction"]["advice"]


def test_a_table_of_another_database_has_no_name_here(postgres):
    """Its number would be that of another table, or of none."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create database elsewhere")
        try:
            with psycopg.connect(postgres.url("", "elsewhere"), autocommit=True) as other:
                other.execute("create table crowded (id int)")
                with other.transaction():
                    other.execute("lock table crowded in access exclusive mode")
                    waiting = psycopg.connect(postgres.url("", "elsewhere"))
                    thread = threading.Thread(target=lambda: waiting.execute("select 1 from crowded"))
                    thread.start()
                    poll(lambda: "locks" in found(postgres.url()), "it waits")
                    details = found(postgres.url())["locks"]["details"]
                thread.join()
                waiting.close()
            assert len(details) == 1
            assert " behind session " in details[0]
        finally:
            connection.execute("drop database elsewhere with (force)")


def test_prepared_transaction_without_a_session_is_named(table, postgres):
    """The server calls it session 0; its name is what ends it."""
    with PostgresServer.start(settings={"max_prepared_transactions": "2"}) as server:
        with psycopg.connect(server.url(""), autocommit=True) as connection:
            connection.execute("create table crowded (id int)")
            connection.execute("begin")
            connection.execute("lock table crowded in access exclusive mode")
            connection.execute("prepare transaction 'order 4711'")
        assert found(server.url(), "--slow", "60") == {}
        with at_work(server, "select 1 from crowded"):
            poll(lambda: "locks" in found(server.url(), "--slow", "60"), "it waits")
            findings = found(server.url(), "--slow", "60")
        assert findings["locks"]["details"][0] == "1 behind a prepared transaction, which has no session"
        assert "session 0" not in str(findings)
        assert "pg_terminate_backend" not in findings["locks"]["advice"]
        assert findings["prepared"]["details"][0].startswith("'order 4711' in 'postgres', by 'postgres' ")
        assert "ROLLBACK PREPARED" in findings["prepared"]["advice"]


def test_server_without_a_free_connection_is_not_unreachable():
    """Its refusal is reported as such, with the hint to ask as a superuser."""
    with (
        PostgresServer.start(max_connections=10) as server,
        psycopg.connect(server.url(""), autocommit=True) as connection,
        contextlib.ExitStack() as stack,
    ):
        connection.execute("create role plain login")
        for _ in range(6):
            stack.enter_context(psycopg.connect(server.url("").replace("postgres@", "plain@")))
        for driver in ("psycopg", "psycopg2"):
            finding = found(server.url(driver).replace("postgres@", "plain@"))["connections"]
            assert finding["what"].startswith("it answers, and has no connection left for this user: ")
            assert "connection slots are reserved" in finding["what"]
            assert "superuser" in finding["advice"]
        for _ in range(3):
            stack.enter_context(psycopg.connect(server.url("")))
        assert "too many clients already" in found(server.url())["connections"]["what"]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_refusals_of_postgresql_are_distinguished(postgres, driver):
    """The server's own words; of the URL neither address nor password."""
    url = make_url(postgres.url(driver)).set(password=CANARY)
    role = found(url.set(username="nosuch").render_as_string(False))["denied"]
    assert role["what"].endswith('FATAL: role "nosuch" does not exist')
    missing = found(url.set(database="nosuch").render_as_string(False))["denied"]
    assert missing["what"].endswith('FATAL: database "nosuch" does not exist')
    unknown = found(url.set(host=f"{CANARY}.invalid").render_as_string(False))["unreachable"]
    assert "could not translate host name" in unknown["what"] or "not known" in unknown["what"]
    assert "name service" in unknown["advice"]


def test_refusals_of_mariadb_are_distinguished(mariadb):
    """As for PostgreSQL; a user without PROCESS hears what he cannot see."""
    backend = BACKENDS["mariadb"](mariadb)
    root = f"mysql+pymysql://root@127.0.0.1:{mariadb.port}/guardrails"
    with contextlib.closing(backend.connect()) as connection:
        backend.run(connection, f"create user plain@'127.0.0.1' identified by '{CANARY}'")
        backend.run(connection, "grant select on guardrails.* to plain@'127.0.0.1'")
        try:
            url = make_url(root).set(username="plain", password=CANARY).render_as_string(False)
            code, output = run(url)
            assert code == 0
            assert (
                "not seen: what other users' sessions and transactions do: that takes the privilege" in output
            )
            denied = found(root.replace("root@", f"plain:{CANARY}x@").replace(f"{CANARY}x", "wrong"))[
                "denied"
            ]
            assert "Access denied for user 'plain'" in denied["what"]
            assert "127.0.0.1" not in denied["what"]
        finally:
            backend.run(connection, "drop user plain@'127.0.0.1'")
    assert "Unknown database 'nosuch'" in found(root.replace("/guardrails", "/nosuch"))["denied"]["what"]
    unknown = found(root.replace("127.0.0.1", f"{CANARY}.invalid"))["unreachable"]
    assert "name service" in unknown["advice"]


def test_refusals_of_valkey_are_distinguished():
    """A wrong password, an unknown host, no client left, a user who may not read the slow log."""
    with ValkeyServer.start("--maxclients", "2", "--requirepass", CANARY) as valkey:
        url = f"redis://:{CANARY}@127.0.0.1:{valkey.port}"
        assert "invalid username-password pair" in found(url.replace(CANARY, "wrong"))["denied"]["what"]
        assert "authenticated" in found(f"redis://127.0.0.1:{valkey.port}")["denied"]["what"]
        client = redis.Redis(port=valkey.port, password=CANARY)
        client.execute_command("ACL", "SETUSER", "plain", "on", "nopass", "+info")
        code, output = run(f"redis://plain:x@127.0.0.1:{valkey.port}")
        assert (code, "slow commands: that takes the right to SLOWLOG GET" in output) == (0, True)
        with redis.Redis(port=valkey.port, password=CANARY) as second:
            second.ping()
            assert "max number of clients reached" in found(url)["connections"]["what"]
        client.close()
    assert "name service" in found(f"redis://{CANARY}.invalid")["unreachable"]["advice"]


def test_postgres_scheme_of_hosting_services_is_accepted(postgres):
    """postgres:// and postgres+driver:// are PostgreSQL's, as libpq has it."""
    url = postgres.url("").replace("postgresql://", "postgres://")
    assert run(url) == (0, "PostgreSQL: nothing found.\n")
    assert run(url.replace("postgres://", "postgres+asyncpg://"))[0] == 0


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ('connection to server at "db.example" (10.0.0.5), port 5432 failed: FATAL:  no', "FATAL: no"),
        ('connection failed: connection to server at "::1", port 1 failed: Refused\n\tIs it?', "Refused"),
        (
            'no pg_hba.conf entry for host "10.1.2.3", user "x"',
            'no pg_hba.conf entry for host "...", user "x"',
        ),
        ('no entry for host "2001:db8::1", user "x"', 'no entry for host "...", user "x"'),
        ("Error 111 connecting to db.example:6379. Refused.", "Error 111 connecting to ...:6379. Refused."),
        (f"password {CANARY} is wrong at 12:30", "password ... is wrong at 12:30"),
        ("a\x1b[31m", "a?[31m"),
        ("", "no reason given"),
    ],
)
def test_messages_of_drivers_lose_addresses_and_secrets(message, said):
    """The secrets of the URL, and every address, are removed."""
    assert words(message, [CANARY, "db.example", None]) == said


def test_slow_statements_are_named(postgres):
    """By session and time, without their text."""
    with at_work(postgres, f"select pg_sleep(30), '{CANARY}'", "report"):
        time.sleep(0.15)
        finding = found(postgres.url(), "--slow", "0.1")["slow"]
        assert finding["what"] == "statements running for 0.1 s or more: 1"
        assert "of 'report'" in finding["details"][0]


def test_few_connections_left_are_counted(postgres):
    """From four fifths on, with who has them."""
    with contextlib.ExitStack() as stack:
        for _ in range(80):
            stack.enter_context(psycopg.connect(postgres.url(""), application_name="shop"))
        finding = found(postgres.url())["connections"]
    assert finding["what"] == "connections in use: 80 of 97"
    assert finding["details"] == ["80 x 'shop'"]


def test_names_cannot_write_on_the_terminal(postgres):
    """The name of a client is shown without control characters."""
    with at_work(postgres, "select pg_sleep(30)", "\x1b[31mred"):
        time.sleep(0.15)
        assert "\x1b" not in run(postgres.url(), "--slow", "0.1")[1]


def test_mariadb_is_asked_too(mariadb):
    """A row lock, who holds it, and an open transaction that does nothing."""
    backend = BACKENDS["mariadb"](mariadb)
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(backend.connect()) for _ in range(2))
        backend.run(first, "create table crowded (id int primary key) engine=innodb")
        backend.run(first, "insert into crowded values (1)")
        backend.run(first, "begin")
        backend.run(first, "update crowded set id = 1")
        pid = backend.run(first, "select connection_id()")
        waiting = threading.Thread(target=lambda: backend.run(second, "update crowded set id = 1"))
        waiting.start()
        url = f"mysql+aiomysql://root@127.0.0.1:{mariadb.port}/guardrails"
        try:
            wait = functools.partial(poll, every=INNODB_REFRESH)
            wait(lambda: "locks" in found(url, "--slow", "1"), "somebody waits for a lock")
            wait(lambda: "idle_in_transaction" in found(url, "--slow", "1"), "somebody does nothing", 10)
            findings = found(url, "--slow", "1")
            assert f"1 behind session {pid} of 'root', idle in transaction" in findings["locks"]["details"][0]
        finally:
            backend.run(first, "rollback")
            waiting.join()
        backend.run(first, "drop table crowded")
    product = "MySQL" if isinstance(mariadb, MySQLServer) else "MariaDB"
    wait(lambda: run(url) == (0, f"{product}: nothing found.\n"), "it is well again")


PERFORMANCE_SCHEMA = (
    "--performance-schema=on",
    "--performance-schema-instrument=wait/lock/metadata/sql/mdl=ON",
)
PLUGIN = ("--plugin-load-add=metadata_lock_info",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [PERFORMANCE_SCHEMA, PLUGIN, ()], ids=["performance_schema", "plugin", "neither"]
)
def test_the_transaction_that_stops_an_alter_table_is_named(options):
    """Reads wait behind it. Where the server does not tell who holds the table, it says "likely"."""
    with start_mariadb(*options) as server, contextlib.ExitStack() as stack:
        backend = BACKENDS["mariadb"](server)
        holder, *others = (stack.enter_context(backend.connect()) for _ in range(4))
        backend.run(holder, "create table crowded (id int primary key) engine=innodb")
        backend.run(holder, "create table calm (id int primary key) engine=innodb")
        innocent = others.pop()
        backend.run(innocent, "lock tables calm read")
        backend.run(holder, "begin")
        backend.run(holder, f"select count(*), '{CANARY}' from crowded")
        pid = backend.run(holder, "select connection_id()")
        waiters = [
            threading.Thread(target=backend.run, args=(each, statement))
            for each, statement in zip(
                others, ("alter table crowded add more int", "select count(*) from crowded"), strict=True
            )
        ]
        url = server.url()
        try:
            for number, waiter in enumerate(waiters, 1):
                waiter.start()
                poll(
                    lambda said=f"locks: {number},": said in found(url).get("locks", {}).get("what", ""),
                    "it waits",
                    every=INNODB_REFRESH,
                )
            finding = found(url)["locks"]
            _, tables = run(url, "--all")
        finally:
            backend.run(holder, "rollback")
            for waiter in waiters:
                if waiter.ident is not None:
                    waiter.join()
    how = "" if options else "likely "
    assert finding["details"][0].startswith(
        f"2 {how}behind session {pid} of 'root', idle in transaction for "
    )
    assert (finding["details"][1:] == ["for 'crowded'"]) == bool(options)
    assert (f"KILL {pid}" in finding["advice"]) == bool(options)
    assert ("likely " in tables) == (not options)


def test_valkey_is_asked_too():
    """Slow commands by their names, clients against their limit, memory against its limit."""
    with ValkeyServer.start("--maxclients", "8", "--enable-debug-command", "yes") as valkey:
        url = f"redis://127.0.0.1:{valkey.port}"
        assert run(url) == (0, "Valkey: nothing found.\n")
        client = redis.Redis(port=valkey.port)
        client.execute_command("DEBUG", "SLEEP", "0.15")
        finding = found(url, "--slow", "0.1")["slow"]
        assert finding["details"][0].startswith("'DEBUG', 0.1")
        client.set(CANARY, CANARY * 1000)
        client.config_set("maxmemory", client.info()["used_memory"])
        assert "%, policy noeviction" in found(url)["memory"]["what"]
        client.config_set("maxmemory", 0)
        others = [redis.Redis(port=valkey.port) for _ in range(6)]
        for other in others:
            other.ping()
        assert found(url)["connections"]["what"] == "connections in use: 7 of 8"
        for other in [client, *others]:
            other.close()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://{CANARY}:{CANARY}@127.0.0.1:{{port}}/{CANARY}",
        f"mysql://{CANARY}:{CANARY}@127.0.0.1:{{port}}/{CANARY}",
        f"redis://{CANARY}:{CANARY}@127.0.0.1:{{port}}",
    ],
)
def test_server_that_is_not_there_is_a_finding(url):
    """The kind of error, and neither address nor user nor password."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, output = run(url.format(port=port))
    assert code == 1
    assert "it does not answer: " in output
    assert str(port) not in output


def test_silent_server_is_given_up(monkeypatch):
    """One that takes the connection and says nothing costs its seconds, no more."""
    monkeypatch.setattr("guardrails.diagnosis.databases.ANSWER_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        code, output = run(f"postgresql://127.0.0.1:{silent.getsockname()[1]}/x")
        assert time.monotonic() - start < 3
    assert (code, "it does not answer: no answer within 0.3 s" in output) == (1, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say which server"),
        ([f"no-url-{CANARY}"], "this is no URL of a server"),
        ([f"redis://127.0.0.1:{CANARY}"], "this is no URL of a server"),
        ([f"mysql://127.0.0.1/x?{CANARY}=1"], "this is no URL of a server"),
        ([f"sqlite:///{CANARY}"], "sqlite cannot be asked"),
        ([f"http://{CANARY}/internal"], "an http URL is a status page: --status URL"),
        (["postgresql://127.0.0.1/x", "--slow", "-1"], "--slow"),
        (["postgresql://127.0.0.1/x", "--slow", "often"], "--slow"),
    ],
)
def test_wrong_arguments_are_named(words, said):
    """Exit 2, with the name of what is wrong."""
    code, output = run(*words)
    assert code == 2
    assert said in output


def test_every_chain_of_waiters_leads_to_the_holder():
    """Chains are followed to their end; a circle of waiters and a session that has gone are no trouble."""
    sessions = (
        Session(1, "a", "waiting", 3, (2,)),
        Session(2, "b", "waiting", 4, (3,)),
        Session(3, "c", "active", 9),
        Session(4, "d", "waiting", 1, (5,)),
        Session(5, "d", "waiting", 1, (4,)),
        Session(6, "e", "waiting", 1, (99,)),
    )
    (locks, slow) = judge(Facts("PostgreSQL", 100, 3, sessions), slow=5)
    assert locks.what == "sessions waiting for locks: 5, for up to 4 s"
    assert locks.details == ("2 behind session 3 of 'c', active for 9 s", "1 behind session 99")
    assert slow.details == ("session 3 of 'c', 9 s",)


def test_a_full_server_says_from_how_many_addresses_its_sessions_come():
    """It does not tell processes apart. A Unix socket has no address."""
    clients = ["10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.3"]
    shop = tuple(Session(pid, "shop", "idle", 1, client=client) for pid, client in enumerate(clients))
    others = (
        Session(8, "cron", "idle", 1, client="10.0.0.1"),
        Session(9, "cron", "idle", 1),
        Session(10, "local", "idle", 1),
    )
    (full,) = judge(Facts("PostgreSQL", 8, 0, (*shop, *others)), slow=5)
    assert full.details == ("4 x 'shop', from 3 addresses", "2 x 'cron'", "1 x 'local'")


def test_urls_of_asynchronous_drivers_are_understood(only):
    """A driver's own settings do not stop the one that asks."""
    only("psycopg")
    url = with_driver(make_url("postgresql+asyncpg://u@h/d?prepared_statement_cache_size=0"))
    assert (url.drivername, dict(url.query)) == ("postgresql+psycopg", {})
    for name in ("psycopg2", "psycopg_async"):
        url = with_driver(make_url(f"postgresql+{name}://u@h/d?sslmode=require&application_name=x"))
        assert dict(url.query) == {"sslmode": "require", "application_name": "x"}


@pytest.mark.parametrize(
    ("given", "installed", "asked"),
    [
        ("postgresql+asyncpg://d/s?ssl=verify-full", "psycopg asyncpg", None),
        ("mysql+asyncmy://d/s?ssl=true", "pymysql asyncmy", None),
        (
            "postgresql+asyncpg://d/s?ssl=verify-full",
            "psycopg",
            "postgresql+psycopg://d/s?sslmode=verify-full",
        ),
        (
            "postgresql+asyncpg:///s?host=/run/x&port=6543",
            "psycopg",
            "postgresql+psycopg:///s?host=/run/x&port=6543",
        ),
        (
            "postgresql:///s?host=a:5432,b:5433&target_session_attrs=read-write&application_name=x",
            "asyncpg",
            "postgresql+asyncpg:///s?host=a:5432,b:5433&target_session_attrs=read-write",
        ),
        (
            "mysql+pymysql://d/s?ssl_ca=/ca.pem&charset=utf8mb4",
            "asyncmy",
            "mysql+asyncmy://d/s?ssl_ca=/ca.pem",
        ),
        (
            "mysql+pymysql:///s?unix_socket=/run/m.sock",
            "asyncmy",
            "mysql+asyncmy:///s?unix_socket=/run/m.sock",
        ),
    ],
)
def test_the_same_server_is_asked_with_the_same_tls(only, given, installed, asked):
    only(*installed.split())
    assert with_driver(make_url(given)) == make_url(asked or given)


@pytest.mark.parametrize(
    ("given", "installed", "words"),
    [
        (
            "postgresql://d/s?sslmode=verify-full&sslrootcert=/ca.pem",
            "asyncpg",
            "sslrootcert,.*psycopg.binary",
        ),
        ("postgresql://d/s?hostaddr=10.0.0.1", "asyncpg", "hostaddr"),
        ("postgresql+asyncpg://d/s?direct_tls=1", "psycopg", "direct_tls.*: pip install asyncpg"),
        (
            "mysql+pymysql://d/s?ssl_verify_cert=1",
            "asyncmy",
            "ssl_verify_cert,.*: pip install pymysql",
        ),
    ],
)
def test_an_option_of_tls_or_address_is_never_left_out(only, given, installed, words):
    only(installed)
    with pytest.raises(ConfigurationError, match=words):
        with_driver(make_url(given))


@pytest.fixture
def only(monkeypatch):
    """Leaves these drivers, as if no other were installed."""

    def leave(*names):
        for dialect in drivers._DRIVERS:
            monkeypatch.setitem(drivers._DRIVERS, dialect, names)

    return leave


def test_asyncpg_asks_where_it_is_the_only_driver(postgres, table, only):
    """Locks with their holder, and refusals: in the same words as with other drivers."""
    only("asyncpg")
    assert run(postgres.url("asyncpg")) == (0, "PostgreSQL: nothing found.\n")
    with another(postgres, "lock table crowded in access exclusive mode", "migration") as blocker:
        with at_work(postgres, "select 1 from crowded"):
            poll(lambda: "locks" in found(postgres.url("asyncpg")), "it waits")
            finding = found(postgres.url("asyncpg"))["locks"]
        assert f"1 behind session {blocker.info.backend_pid} of 'migration'" in finding["details"][0]
    url = make_url(postgres.url("asyncpg")).set(password=CANARY)
    role = found(url.set(username="nosuch").render_as_string(False))["denied"]
    assert role["what"].endswith('role "nosuch" does not exist')
    missing = found(url.set(database="nosuch").render_as_string(False))["denied"]
    assert missing["what"].endswith('database "nosuch" does not exist')
    assert "unreachable" in found(url.set(port=1).render_as_string(False))


def test_asyncmy_asks_where_it_is_the_only_driver(mariadb, only):
    only("asyncmy")
    url = f"mysql+asyncmy://root@127.0.0.1:{mariadb.port}/guardrails"
    code, output = run(url)
    assert output.startswith(("MariaDB", "MySQL"))
    assert code in {0, 1}


def test_options_of_another_driver_are_translated_or_left_out(only):
    only("asyncpg")
    url = with_driver(make_url("postgresql://u@h/d?sslmode=require"))
    assert (url.drivername, dict(url.query)) == ("postgresql+asyncpg", {"ssl": "require"})
    url = with_driver(make_url("postgresql+asyncpg://u@h/d?ssl=disable"))
    assert dict(url.query) == {"ssl": "disable"}


def test_a_missing_driver_is_named_with_the_command_that_installs_it(only):
    only()
    for url, package in (("postgresql://h/d", "'psycopg[binary]'"), ("mysql://h/d", "pymysql")):
        code, output = run(url)
        assert code == 2
        assert f"pip install {package}" in " ".join(output.split())
