"""Each web service of the examples, behind its server, while a migration locks one of its tables."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from support.paths import EXAMPLES
from support.polling import poll
from support.server_process import Server

SCHEMA = (EXAMPLES / "fastapi_service" / "schema.sql").read_bytes()

GUNICORN = "gunicorn --threads 40 --bind 127.0.0.1:{port} "
SERVICES = {
    "fastapi": ("uvicorn shop.main:app --port {port}", "fastapi_service", "asyncpg", 7),
    "fastapi-gunicorn": ("gunicorn --bind 127.0.0.1:{port} shop.main:app", "fastapi_service", "asyncpg", 7),
    "starlette": ("uvicorn starlette_app:app --port {port}", ".", "asyncpg", 10),
    "litestar": ("uvicorn litestar_app:app --port {port}", ".", "asyncpg", 10),
    "flask": (GUNICORN + "flask_app:app", ".", "psycopg", 10),
    "django": (GUNICORN + "django_postgresql:application", ".", "psycopg", 7),
}
"""Command, folder, driver, and the slots that one compartment may have."""


@pytest.fixture
def shop(postgres):
    """A libpq connection string of a database with the tables of the examples."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        connection.execute("create database shop")
    try:
        address = make_conninfo(postgres.url(""), dbname="shop")
        with psycopg.connect(address) as connection:
            connection.execute(SCHEMA)
        yield address
    finally:
        with psycopg.connect(postgres.url(""), autocommit=True) as connection:
            connection.execute("drop database shop with (force)")


@pytest.fixture(params=SERVICES)
def service(request, shop, postgres, valkey, tmp_path):
    """One of the services, started as its page says; with the slots of its compartment for reports."""
    command, folder, driver, slots = SERVICES[request.param]
    libpq = conninfo_to_dict(shop)
    environ = {
        "DATABASE_URL": postgres.url(driver, "shop"),
        "REDIS_URL": valkey.url(),
        "WEB_CONCURRENCY": "1",
        **{f"PG{word.upper()}": str(libpq[word]) for word in ("host", "port", "user")},
        "PGDATABASE": "shop",
    }
    with Server(request.param, command, tmp_path / "log", environ, EXAMPLES / folder) as server:
        yield server.wait("/orders"), slots


def ask(server, path):
    """The status of an answer, its headers and what it says."""
    url = f"http://127.0.0.1:{server.address[1]}{path}"
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def statuses_of(users, server, times):
    """The statuses of so many reports, asked for at once."""
    return {status for status, _, _ in users.map(lambda _: ask(server, "/reports/3"), range(times))}


@pytest.mark.sampled(2)
def test_a_locked_table_costs_its_own_route_alone(service, shop):
    """Stopped with 504 at the timeout or refused with 503 at once; everything else is served as before."""
    server, slots = service
    assert ask(server, "/orders")[0] == ask(server, "/reports/3")[0] == 200
    with contextlib.ExitStack() as until_released:
        migration = until_released.enter_context(psycopg.connect(shop))
        users = until_released.enter_context(ThreadPoolExecutor(slots + 5))
        migration.execute("lock table reports in access exclusive mode")
        asked = [users.submit(ask, server, "/reports/3") for _ in range(slots + 5)]
        assert ask(server, "/orders")[0] == 200
        assert ask(server, "/ping")[0] == 200
        answers = [answer.result() for answer in asked]
        statuses = Counter(status for status, _, _ in answers)
        assert set(statuses) == {503, 504}
        assert statuses[504] <= slots
        for status, headers, body in answers:
            assert headers["Content-Type"] == "application/problem+json"
            assert (json.loads(body)["code"] == "timeout") is (status == 504)
            assert (headers["Retry-After"] is not None) is (status == 503)
    poll(lambda: ask(server, "/reports/3")[0] == 200, "reports are served again")
    assert json.loads(ask(server, "/reports/3")[2]) == {"report": 300}


@pytest.mark.sampled(1)
def test_probes_answer_while_the_circuit_is_open(service, shop):
    """Ready all the time: its siblings have the same database."""
    server, slots = service
    with psycopg.connect(shop) as migration, ThreadPoolExecutor(slots) as users:
        migration.execute("lock table reports in access exclusive mode")
        poll(lambda: statuses_of(users, server, slots) == {503}, "the circuit refuses every report")
        assert ask(server, "/internal/readyz")[0] == ask(server, "/internal/livez")[0] == 200
        guards = json.loads(ask(server, "/internal/status.json")[2])["guards"]
    states = {name: circuit["state"] for guard in guards for name, circuit in guard_states(guard)}
    assert {"open", "half_open"} & set(states.values()), states


def guard_states(guard):
    """The guard and its compartments, as the page has them."""
    yield guard["name"], guard
    for part in guard.get("compartments", ()):
        yield part["name"], part
