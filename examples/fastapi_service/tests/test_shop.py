"""The service against a PostgreSQL and a Valkey of its own. In the folder above: ``python -m pytest``."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from starlette.testclient import TestClient

from guardrails.testing.servers import PostgresServer, ValkeyServer

SCHEMA = Path(__file__).parents[1] / "schema.sql"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer.start() as server:
        with psycopg.connect(server.url("")) as connection:
            connection.execute(SCHEMA.read_bytes())
        os.environ["DATABASE_URL"] = server.url("asyncpg")
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer.start() as server:
        os.environ["REDIS_URL"] = server.url()
        yield server


@pytest.fixture(scope="session")
def client(postgres: PostgresServer, valkey: ValkeyServer) -> Iterator[TestClient]:
    from shop.main import app  # noqa: PLC0415 - its settings are read when it is imported

    with TestClient(app) as client:
        yield client


@pytest.fixture(autouse=True)
def healthy(client: TestClient) -> None:
    """Each test begins with closed circuits and an empty cache."""
    from shop.guards import cache, cache_guard, db  # noqa: PLC0415

    db.reset()
    cache_guard.reset()
    assert client.portal is not None
    client.portal.call(cache.flushdb)


def test_orders_are_taken_and_counted(client: TestClient) -> None:
    before = client.get("/orders").json()
    taken = client.post("/orders/lamp")
    assert taken.status_code == 201
    assert taken.json()["order"] > before["orders"]
    assert client.get("/orders").json() == before, "a page may be five seconds old"


def test_a_locked_table_costs_its_own_route_alone(client: TestClient, postgres: PostgresServer) -> None:
    assert client.get("/orders").status_code == 200
    with psycopg.connect(postgres.url("")) as migration, ThreadPoolExecutor(12) as users:
        migration.execute("lock table reports in access exclusive mode")
        asked = [users.submit(client.get, "/reports/3") for _ in range(12)]
        assert client.post("/orders/lamp").status_code == 201
        assert client.get("/ping").json() == "pong"
        answers = [answer.result() for answer in asked]
    assert Counter(answer.status_code for answer in answers) == {504: 7, 503: 5}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)
    assert client.get("/internal/readyz").status_code == 200


def test_pages_are_made_without_a_frozen_cache(client: TestClient, valkey: ValkeyServer) -> None:
    valkey.freeze()
    thawing = threading.Timer(2, valkey.thaw)
    thawing.start()
    try:
        assert client.get("/orders").status_code == 200
    finally:
        thawing.join()


def test_the_metrics_name_both_guards(client: TestClient) -> None:
    page = client.get("/internal/metrics").text
    assert 'guardrails_mode{guard="orders-db",mode="enforce"} 1.0' in page
    assert 'guardrails_mode{guard="cache",mode="enforce"} 1.0' in page
