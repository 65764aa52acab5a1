"""One project with PostgreSQL, a replica of it, MariaDB, a router, WSGI, ASGI and Celery, on real servers."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections import Counter

import psycopg
import pytest

from guardrails.testing._processes import end
from guardrails.testing.proxy import FaultProxy
from support.django_servers import get
from support.http_client import GET, Client
from support.paths import SUPPORT, python_path
from support.polling import poll, wait_until
from support.server_process import Server
from support.sql_lab import MariaDB

PROJECT = SUPPORT / "django_orders"

SERVERS = {
    "gunicorn, gthread": (
        "gunicorn orders.servers:wsgi --worker-class gthread --threads 8 --bind 127.0.0.1:{port}"
    ),
    "uvicorn": "uvicorn orders.servers:asgi --host 127.0.0.1 --port {port} --lifespan off",
}
KEEPS = [
    ("gunicorn, gthread", "60"),
    ("uvicorn", "0"),
    ("gunicorn, gthread", "null"),
    pytest.param(("gunicorn, gthread", "0"), marks=pytest.mark.slow),
    pytest.param(("uvicorn", "60"), marks=pytest.mark.slow),
]
"""Servers, and CONN_MAX_AGE; Django advises 0 under ASGI."""

ALIASES = ("default", "replica", "archive")
TABLE = "create table {} (id {} primary key, name varchar(40) not null)"


@pytest.fixture(scope="module")
def environ(postgres, mariadb):
    """The tables, and what the project must know; a proxy stands before the replica."""
    with (
        FaultProxy(postgres.port) as replica,
        psycopg.connect(postgres.url(""), autocommit=True) as plain,
        MariaDB(mariadb).connect() as archive,
    ):
        plain.execute("drop table if exists orders_order")
        plain.execute(TABLE.format("orders_order", "bigserial"))
        MariaDB.run(archive, "drop table if exists orders_oldorder")
        MariaDB.run(archive, TABLE.format("orders_oldorder", "bigint auto_increment"))
        words = {
            "DJANGO_SETTINGS_MODULE": "orders.settings",
            "PRIMARY": str(postgres.port),
            "REPLICA": str(replica.port),
            "ARCHIVE": str(mariadb.port),
        }
        yield replica, words
        plain.execute("drop table orders_order")
        MariaDB.run(archive, "drop table orders_oldorder")


@pytest.fixture(scope="module", params=KEEPS, ids=lambda pair: f"{pair[0]}, CONN_MAX_AGE {pair[1]}")
def project(request, environ, tmp_path_factory):
    """The project behind a server."""
    replica, words = environ
    name, keeps = request.param
    log = tmp_path_factory.mktemp("orders") / "log"
    with Server(name, SERVERS[name], log, words | {"KEEPS": keeps}, PROJECT) as server:
        server.wait("/figures")
        server.replica = replica
        server.keeps = keeps
        yield server


def slots(project):
    return {alias: figures["slots"] for alias, figures in project.figures().items()}


NONE = dict.fromkeys(ALIASES, 0)


def healthy(project):
    """Every alias answers, and every slot is free."""
    wait_until(lambda: {get(project, path)[0] for path in (b"/primary", b"/read", b"/old")} == {200})
    wait_until(lambda: slots(project) == NONE)


def test_each_model_is_asked_for_in_its_own_database(project):
    """Rows are written to the primary, read from the replica, and moved to the archive."""
    healthy(project)
    failed = {alias: each["failed"] for alias, each in project.figures().items()}
    before = int(get(project, b"/read")[1]), int(get(project, b"/old")[1])
    for _ in range(3):
        assert get(project, b"/write") == (200, b"new")
    assert get(project, b"/primary") == get(project, b"/read") == (200, b"%d" % (before[0] + 3))
    assert get(project, b"/archive") == (200, b"moved")
    assert project.ask("/async") == [before[0] + 2, before[1] + 1]
    wait_until(lambda: slots(project) == NONE)
    figures = project.figures()
    assert all(each["opened"] >= 1 for each in figures.values()), figures
    assert {alias: each["failed"] for alias, each in figures.items()} == failed
    open_now = {alias: each["open"] for alias, each in figures.items()}
    if project.keeps == "0":
        assert open_now == NONE
    else:
        assert all(open_now.values())
        assert all(each["idle"] == each["open"] for each in figures.values())


@pytest.mark.sampled(1)
def test_a_frozen_replica_touches_no_other_database(project):
    """Its own requests get 504 and soon 503; the others are served, and no guard of theirs has a failure."""
    healthy(project)
    before = project.figures()
    project.replica.hang()
    try:
        # The circuit of this route's compartment opens.
        assert {get(project, b"/read")[0] for _ in range(15)} == {503, 504}
        for path in (b"/primary", b"/write", b"/old"):
            assert get(project, path)[0] == 200
        figures = project.figures()
    finally:
        project.replica.heal()
    for alias in ("default", "archive"):
        assert figures[alias]["state"] == "closed"
        assert figures[alias]["failed"] == before[alias]["failed"]
        assert figures[alias]["rejected"] == before[alias]["rejected"]
    healthy(project)


@pytest.mark.sampled(1)
def test_a_locked_table_of_the_archive_touches_no_other_database(project, mariadb):
    healthy(project)
    before = project.figures()
    with MariaDB(mariadb).connect() as other:
        MariaDB.run(other, "lock tables orders_oldorder write")
        assert get(project, b"/old")[0] == 504
        for path in (b"/primary", b"/read", b"/write"):
            assert get(project, path)[0] == 200
        MariaDB.run(other, "unlock tables")
    figures = project.figures()
    assert figures["archive"]["failed"] == before["archive"]["failed"] + 1
    assert figures["default"]["failed"] == before["default"]["failed"]
    healthy(project)


def test_more_requests_than_slots_lose_none(project):
    """Of requests that use several databases some are refused, none fails, and each slot comes back."""
    healthy(project)
    counted = Counter()
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(project.address)) for _ in range(24)]
            for client, path in zip(clients, [b"/async", b"/write", b"/old"] * 8, strict=True):
                client.send(GET % path)
            counted.update(client.response()[0] for client in clients)
    assert set(counted) <= {200, 503, 504}, counted
    assert counted[200] >= 12, counted
    healthy(project)


# --- Celery --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks(environ, valkey, tmp_path_factory):
    """Sends a task to a worker of the same project, with four threads."""
    celery = pytest.importorskip("celery")
    _, words = environ
    log = tmp_path_factory.mktemp("celery") / "log"
    words = words | {"BROKER": valkey.url(), "KEEPS": "60", "TIMEOUT": "20", "PYTHONPATH": python_path()}
    command = "celery -A orders.tasks worker --pool threads --concurrency 4 --loglevel INFO --without-mingle"
    with log.open("w") as written:
        worker = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=PROJECT,
            env=os.environ | words,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        app = celery.Celery("orders", broker=valkey.url(), backend=valkey.url(), set_as_current=False)
        yield lambda name: app.send_task(f"orders.tasks.{name}")
        app.close()
    finally:
        end(worker.pid, signal.SIGTERM)
        worker.wait(20)


needs_celery = pytest.mark.skipif(not importlib.util.find_spec("celery"), reason="celery is not installed")


@needs_celery
def test_a_task_takes_a_slot_of_each_database_and_gives_it_back(tasks):
    for result in [tasks("count") for _ in range(8)]:
        counts, held = result.get(timeout=60)
        assert counts[0] == counts[1]
        assert all(1 <= each <= 4 for each in held.values())
    poll(lambda: slots_of(tasks) == NONE, "every slot is free between tasks")


def slots_of(tasks):
    return {alias: each["slots"] for alias, each in tasks("figures").get(timeout=60).items()}


@needs_celery
def test_a_refused_task_is_sent_again(tasks):
    assert tasks("refused_at_first").get(timeout=60) >= 1
    poll(lambda: slots_of(tasks) == NONE, "every slot is free between tasks")
