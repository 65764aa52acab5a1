"""``cancel_on_disconnect`` behind real servers, on real databases: clients close their sockets."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time

import pytest

from support.http_client import Client
from support.polling import poll
from support.server_process import Server
from support.sql_lab import MariaDB, Postgres

SERVERS = {
    "uvicorn, h11": "uvicorn leaving_app:app --host 127.0.0.1 --port {port} --http h11",
    "uvicorn, httptools": "uvicorn leaving_app:app --host 127.0.0.1 --port {port} --http httptools",
    "hypercorn": "hypercorn leaving_app:app --bind 127.0.0.1:{port}",
    "granian": "granian leaving_app:app --interface asgi --host 127.0.0.1 --port {port}",
}
TASKS = ["asyncpg", "psycopg_async", "aiomysql", "asyncmy", "asyncpg.Pool", "psycopg_pool"]
THREADS = ["psycopg", "psycopg2", "pymysql"]
STATEMENTS = [f"tasks/statement/{name}" for name in TASKS] + [f"threads/statement/{name}" for name in THREADS]
STREAMS = [f"stream/{name}" for name in ("asyncpg", "aiomysql", "psycopg", "pymysql")]
WRITES = ["tasks/write/asyncpg", "tasks/write/aiomysql", "threads/write/psycopg", "threads/write/pymysql"]
SECONDS = 2.0
"""Time in which work ends after its client. The statements take 60 s."""


def _some(names, *quick):
    """Parameters of which only a few are for every run."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


numbers = itertools.count(1)


class Service:
    """A server with databases behind it, and what can be seen of them from outside."""

    def __init__(self, name, log, postgres, mariadb, valkey):
        self.postgres, self.mariadb, self.valkey = Postgres(postgres), MariaDB(mariadb), valkey
        names = {"psycopg": "psycopg", "psycopg2": "psycopg2", "asyncpg": "asyncpg"}
        urls = {name: self.postgres.url(driver) for name, driver in names.items()}
        urls["psycopg_async"] = urls["psycopg"].replace("+psycopg", "+psycopg_async")
        urls |= {name: self.mariadb.url(name) for name in ("aiomysql", "asyncmy", "pymysql")}
        self.log = log
        self.server = Server(name, SERVERS[name], log, {"URLS": json.dumps(urls), "REDIS": str(valkey.port)})
        self.server.wait("/off/figures")

    def figures(self):
        return self.server.ask("/off/figures")

    def guard(self, path):
        return self.figures()["guards"][path.rpartition("/")[2]]

    def on_server(self, driver, words):
        """How many sessions run a statement with these words."""
        if driver in {"aiomysql", "asyncmy", "pymysql"}:
            sql = (
                "select count(*) from information_schema.processlist where info like '%{}%' "
                "and id <> connection_id()"
            )
            backend = self.mariadb
        else:
            sql = (
                "select count(*) from pg_stat_activity where state = 'active' and query ilike '%{}%' "
                "and pid <> pg_backend_pid()"
            )
            backend = self.postgres
        with contextlib.closing(backend.connect()) as connection:
            return backend.run(connection, sql.format(words).replace("%%", "%"))

    def written(self, driver, number, table="written"):
        backend = self.mariadb if driver in {"aiomysql", "asyncmy", "pymysql"} else self.postgres
        with contextlib.closing(backend.connect()) as connection:
            return backend.run(connection, f"select count(*) from {table} where number = {number}")

    def start(self, path, method="GET"):
        """A client that has asked and waits."""
        client = Client(self.server.address)
        client.send(f"{method} /{path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".encode())
        return client

    def leave(self, client):
        client.reader.close()
        client.socket.close()

    def unrest(self, before):
        """The guards with a taken slot, an open circuit, a failure, a slow call, or a new refusal."""
        found = {}
        for name, each in self.figures()["guards"].items():
            calm = {"in_use": 0, "state": "closed", "failed": 0, "slow": 0}
            calm["rejected"] = before["guards"][name]["rejected"]
            if not calm.items() <= each.items():
                found[name] = each
        return found

    def tasks(self):
        return self.figures()["tasks"]

    def noise(self):
        """The lines of the log that speak of errors."""
        text = self.log.read_text(errors="replace")
        words = ("Traceback", "Exception", "ERROR", "never retrieved", "exception")
        return [line for line in text.splitlines() if any(word in line for word in words)]


@pytest.fixture(scope="module")
def tables(postgres, mariadb):
    """Where the service writes: on PostgreSQL also a table whose COMMIT takes two seconds."""
    pg, maria = Postgres(postgres), MariaDB(mariadb)
    with pg.connect() as connection:
        connection.execute("create table written (number int); create table dawdling (number int)")
        connection.execute(
            "create function wait_two() returns trigger language plpgsql as "
            "$$begin perform pg_sleep(2); return null; end$$;"
            "create constraint trigger slow_commit after insert on dawdling "
            "deferrable initially deferred for each row execute function wait_two();"
        )
        with contextlib.closing(maria.connect()) as other:
            maria.run(other, "create table written (number int)")
            yield
            maria.run(other, "drop table written")
        connection.execute("drop table written, dawdling; drop function wait_two")


@pytest.fixture(scope="module", params=_some(SERVERS, "uvicorn, h11"))
def service(request, tmp_path_factory, postgres, mariadb, valkey, tables):
    """The service behind each server."""
    log = tmp_path_factory.mktemp("server") / "log"
    found = Service(request.param, log, postgres, mariadb, valkey)
    yield found
    found.server.stop()
    assert found.noise() == []


@pytest.fixture
def calm(service):
    """The test's clients leave nothing behind. Clients of another test may have been refused."""
    before = service.figures()
    yield
    assert service.unrest(before) == {}


def left_in_the_middle(service, path, words, method="GET"):
    """Asks for a path, leaves when its statement runs; returns the driver and when it left."""
    driver = path.partition("?")[0].rpartition("/")[2]
    client = service.start(path, method)
    poll(lambda: service.on_server(driver, words) == 1, "the statement runs")
    time.sleep(0.2)  # longer than the time after which the middleware listens
    service.leave(client)
    return driver, time.monotonic()


@pytest.mark.parametrize(
    "path", _some(STATEMENTS + STREAMS, "tasks/statement/asyncpg", "threads/statement/psycopg")
)
def test_a_statement_ends_with_its_client(service, calm, path):
    before = service.figures()
    driver, left = left_in_the_middle(service, f"safe/{path}", "sleep(60)")
    poll(
        lambda: service.on_server(driver, "sleep(60)") == 0, "the statement is gone from the server", SECONDS
    )
    poll(lambda: service.guard(driver)["in_use"] == 0, "the slot is back", SECONDS)
    assert time.monotonic() - left < 2 * SECONDS
    after = service.figures()
    assert after["disconnects"]["safe"] == before["disconnects"]["safe"] + 1
    assert after["told"] == []


def test_a_guarded_call_ends_with_its_client(service, calm):
    client = service.start("safe/call")
    poll(lambda: service.guard("search")["in_use"] == 1, "the call runs")
    time.sleep(0.2)
    service.leave(client)
    poll(lambda: service.guard("search")["in_use"] == 0, "the slot is back", SECONDS)


def test_a_redis_command_ends_with_its_client(service, calm):
    client = service.start("off/redis")
    assert client.response()[0] == 200
    service.leave(client)
    service.valkey.freeze()
    try:
        client = service.start("safe/redis")
        poll(lambda: service.guard("redis")["in_use"] == 1, "the command waits")
        time.sleep(0.2)
        service.leave(client)
        poll(lambda: service.guard("redis")["in_use"] == 0, "the slot is back", SECONDS)
    finally:
        service.valkey.thaw()


@pytest.mark.parametrize("path", _some(WRITES, "threads/write/pymysql"))
def test_a_write_goes_on_and_is_committed(service, calm, path):
    number = next(numbers)
    driver, _ = left_in_the_middle(service, f"safe/{path}?number={number}&seconds=1.1", "sleep(1.1)", "POST")
    poll(lambda: service.written(driver, number) == 1, "the transaction is committed")
    poll(lambda: service.guard(driver)["in_use"] == 0, "the slot is back")


@pytest.mark.parametrize("path", _some(WRITES, "threads/write/pymysql"))
def test_a_write_that_is_to_end_is_rolled_back(service, calm, path):
    number = next(numbers)
    driver, _ = left_in_the_middle(service, f"all/{path}?number={number}&seconds=60", "sleep(60)", "POST")
    poll(lambda: service.on_server(driver, "sleep(60)") == 0, "the statement is gone", SECONDS)
    poll(lambda: service.guard(driver)["in_use"] == 0, "the slot is back", SECONDS)
    assert service.written(driver, number) == 0


@pytest.mark.parametrize(
    "path",
    _some(
        ["tasks/commit/asyncpg", "tasks/commit/psycopg_pool", "threads/commit/psycopg"],
        "tasks/commit/asyncpg",
    ),
)
def test_a_commit_is_never_cancelled(service, calm, path):
    number = next(numbers)
    driver, _ = left_in_the_middle(service, f"all/{path}?number={number}", "commit", "POST")
    poll(lambda: service.written(driver, number, "dawdling") == 1, "the transaction is committed")
    poll(lambda: service.guard(driver)["in_use"] == 0, "the slot is back")


def test_without_the_setting_a_statement_goes_on(service):
    driver, _ = left_in_the_middle(service, "off/threads/statement/psycopg?seconds=1.5", "sleep(1.5)")
    time.sleep(0.5)
    assert service.on_server(driver, "sleep(1.5)") == 1
    poll(lambda: service.guard(driver)["in_use"] == 0, "the statement has ended")


def test_an_upload_in_pieces_arrives_whole_and_in_order(service):
    pieces = [b"%06d," % number for number in range(300)]
    with Client(service.server.address) as client:
        client.send(
            b"POST /all/upload?seconds=0.001 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for each in pieces:
            client.send(b"%x\r\n%s\r\n" % (len(each), each))
            time.sleep(0.002)
        client.send(b"0\r\n\r\n")
        status, _, body = client.response()
    assert status == 200
    assert json.loads(body)["sent"].encode() == b"".join(pieces)


def test_a_body_that_waits_for_leave_is_asked_for_when_the_application_reads(service):
    with Client(service.server.address) as client:
        client.send(
            b"POST /all/upload HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
        )
        assert client.reader.readline().startswith(b"HTTP/1.1 100")
        while client.reader.readline() != b"\r\n":
            pass  # a header of the interim answer
        client.send(b"body")
        status, _, body = client.response()
    assert (status, json.loads(body)["sent"]) == (200, "body")


def test_a_connection_serves_one_request_after_the_other(service):
    with Client(service.server.address) as client:
        for _ in range(3):
            client.send(b"GET /safe/threads/statement/psycopg?seconds=0.25 HTTP/1.1\r\nhost: a\r\n\r\n")
            assert client.response()[0] == 200


@pytest.mark.slow
def test_clients_that_come_and_go_at_random_leave_nothing(service):
    """Two hundred, of all kinds of paths; some wait for their answer."""
    rules = random.Random(20)
    calm = service.tasks()
    paths = [f"safe/{path}?seconds=0.3" for path in STATEMENTS] + [f"safe/{path}" for path in STREAMS]
    work = [
        (rules.choice(paths), rules.choice([0, 0.05, 0.15, 0.3, None]), rules.random()) for _ in range(200)
    ]

    def one(path, stays, begins):
        time.sleep(begins * 3)
        client = service.start(path)
        if stays is not None:
            time.sleep(stays)
        elif "stream" not in path:
            with contextlib.suppress(OSError, AssertionError):
                client.response()
        service.leave(client)

    threads = [threading.Thread(target=one, args=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    idle = lambda: all(each["in_use"] == 0 for each in service.figures()["guards"].values())
    poll(idle, "all slots are back")
    for driver in ("asyncpg", "aiomysql"):
        poll(lambda driver=driver: service.on_server(driver, "sleep(") == 0, "no statement runs")
    poll(lambda: service.tasks() <= calm + 2, f"no task is left beyond {calm}")
    figures = service.figures()
    assert figures["told"] == []
    assert all(each["state"] == "closed" and each["failed"] == 0 for each in figures["guards"].values())
