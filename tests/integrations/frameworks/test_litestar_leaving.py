"""``cancel_on_disconnect`` in a Litestar service behind uvicorn: clients close their sockets."""

from __future__ import annotations

import contextlib
import itertools
import time

import pytest

from support.http_client import Client
from support.polling import poll
from support.server_process import Server
from support.sql_lab import Postgres

SECONDS = 20.0
"""Time in which work ends after its client. The statements take 60 s."""

numbers = itertools.count(1)


class Service:
    """The service, and what can be seen of it from outside."""

    def __init__(self, server, log, postgres):
        self.server, self.log, self.postgres = server, log, postgres

    def ask(self, sql):
        with contextlib.closing(self.postgres.connect()) as connection:
            return self.postgres.run(connection, sql)

    def sleeping(self):
        """How many sessions are in a statement that sleeps."""
        return self.ask(
            "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep(%' "
            "and pid <> pg_backend_pid()"
        )

    def start(self, path, method="GET"):
        client = Client(self.server.address)
        client.send(f"{method} /{path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".encode())
        poll(lambda: self.sleeping() == 1, "the statement runs", SECONDS)
        time.sleep(0.2)  # longer than the time after which the middleware listens
        return client

    def leave(self, client):
        client.reader.close()
        client.socket.close()

    def guard(self, name):
        return self.server.ask("/around/figures")[name]


@pytest.fixture(scope="module")
def service(tmp_path_factory, postgres):
    log = tmp_path_factory.mktemp("server") / "log"
    lab = Postgres(postgres)
    with contextlib.closing(lab.connect()) as connection:
        lab.run(connection, "create table litestar_writes (number int)")
        command = "uvicorn litestar_leaving_app:app --host 127.0.0.1 --port {port}"
        with Server("litestar", command, log, {"URL": lab.url("")}) as server:
            server.wait("/around/figures")
            yield Service(server, log, lab)
        lab.run(connection, "drop table litestar_writes")
    assert "Traceback" not in log.read_text(errors="replace")


@pytest.mark.parametrize("install", ["inside", "around"])
@pytest.mark.parametrize("path", ["task", "thread", "stream"])
def test_a_statement_ends_with_its_client(service, install, path):
    name = "threads" if path == "thread" else "tasks"
    before = service.guard(name)["abandoned"]
    service.leave(service.start(f"{install}/{path}"))
    poll(lambda: service.sleeping() == 0, "the statement is gone from the server", SECONDS)
    poll(lambda: service.guard(name)["in_use"] == 0, "the slot is back", SECONDS)
    after = service.guard(name)
    assert (after["failed"], after["slow"]) == (0, 0)
    assert after["abandoned"] == before + 1


@pytest.mark.parametrize("install", ["inside", "around"])
def test_a_write_goes_on_and_is_committed(service, install):
    number = next(numbers)
    service.leave(service.start(f"{install}/write?number={number}&seconds=1", "POST"))
    written = f"select count(*) from litestar_writes where number = {number}"
    poll(lambda: service.ask(written) == 1, "the transaction is committed", SECONDS)
    poll(lambda: service.guard("tasks")["in_use"] == 0, "the slot is back", SECONDS)
