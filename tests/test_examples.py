"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from psycopg.conninfo import conninfo_to_dict

from guardrails.testing.servers import PostgresServer
from support.paths import EXAMPLES


def told_by(example):
    """What an example prints, line by line."""
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / example],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_circuit_opens():
    """The story is told in the order the page promises."""
    told = told_by("circuit_opens.py")
    assert told[:5] == [*["failed: search is down"] * 4, "  search: closed -> open (failure_rate)"]
    assert told[6].startswith("refused at once")
    assert told[-1] == "<Guard 'search' closed, 0/20 busy, 0 waiting>"


def test_retries():
    """One stumble is hidden, a storm is not made, and every refusal is answered."""
    told = told_by("retries.py")
    assert [line.rpartition(": ")[2] for line in told] == [
        "19.0, 1 attempts",
        "19.0, 2 attempts",
        "no price today (ConnectionError), 2 attempts",
        "no price today (ConnectionError), 1 attempts",
        "no price today (DeadlineSpentError), 0 attempts",
        "no price today (CircuitOpenError), 0 attempts",
        "<RetryBudget 2 retries of 6 calls, 0 available>",
    ]


def test_redis_cache():
    """While the cache is frozen pages are made without it, soon at once; afterwards it is used again."""
    told = told_by("redis_cache.py")
    told = [line.split("  ", 2)[-1].strip() for line in told]
    assert told[0] == told[-1] == "home, from the cache"
    assert told[1] == "home, made after waiting for the cache"
    assert told[2] == "home, made at once: the circuit is open"


def test_fastapi_app(tmp_path, monkeypatch):
    """The service answers, and refuses properly when its circuit is held open."""
    testclient = pytest.importorskip("fastapi.testclient")
    monkeypatch.setitem(os.environ, "DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/db")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fastapi_app  # noqa: PLC0415 - reads its settings when imported

    with testclient.TestClient(fastapi_app.app) as client:
        assert client.get("/items").json() == {"items": 1}
        assert client.get("/reports").json() == {"report": 2}
        assert client.get("/reports/3").json() == {"report": 6}
        described = client.get("/openapi.json").json()["paths"]["/reports"]["get"]["responses"]
        assert "application/problem+json" in described["503"]["content"]
        fastapi_app.reports.force_open()
        for path in ("/reports", "/reports/3"):
            refused = client.get(path)
            assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        assert client.get("/items").status_code == 200
        fastapi_app.reports.reset()
        client.portal.call(fastapi_app.engine.dispose)


def test_starlette_app(tmp_path, monkeypatch):
    """Refused at the edge, while the probes answer."""
    testclient = pytest.importorskip("starlette.testclient")
    monkeypatch.setitem(os.environ, "DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/db")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import starlette_app  # noqa: PLC0415 - reads its settings when imported

    with testclient.TestClient(starlette_app.app) as client:
        assert client.get("/items").json() == {"items": 1}
        starlette_app.db.force_open()
        assert client.get("/items").json()["code"] == "circuit_open"
        assert client.get("/ping").json() == "pong"
        assert client.get("/internal/readyz").json() == {"ready": True, "reasons": []}
        client.portal.call(starlette_app.engine.dispose)


def test_litestar_app(tmp_path, monkeypatch):
    """One workload is refused, the rest goes on, and the mounted probes answer."""
    testclient = pytest.importorskip("starlette.testclient")
    monkeypatch.setitem(os.environ, "DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/db")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import litestar_app  # noqa: PLC0415 - reads its settings when imported

    with testclient.TestClient(litestar_app.app) as client:
        assert client.get("/reports").json() == {"report": 2}
        litestar_app.reports.force_open()
        assert client.get("/reports").json()["code"] == "circuit_open"
        assert client.get("/items").json() == {"items": 1}
        assert client.get("/internal/readyz").json() == {"ready": True, "reasons": []}
        client.portal.call(litestar_app.engine.dispose)


def test_flask_app(tmp_path, monkeypatch, caplog):
    """One workload is refused, the rest goes on; its slots leave threads free, so nothing is warned of."""
    monkeypatch.setitem(os.environ, "DATABASE_URL", f"sqlite:///{tmp_path}/db")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import flask_app  # noqa: PLC0415 - reads its settings when imported

    assert not [record for record in caplog.records if record.levelname != "INFO"]
    client = flask_app.app.test_client()
    assert client.get("/reports").json == {"report": 2}
    flask_app.reports.force_open()
    assert client.get("/reports").json["code"] == "circuit_open"
    assert client.get("/items").json == {"items": 1}
    assert client.get("/internal/readyz").json == {"ready": True, "reasons": []}
    flask_app.engine.dispose()


def test_django_app():
    """A project in one file, in a process of its own because Django's settings are the process's."""
    tracked = (
        "from django_app import search; from django.test import Client; client = Client()\n"
        "print(client.get('/suggest/cat').json()); search.force_open()\n"
        "refused = client.get('/suggest/cat'); print(refused.status_code, refused.json()['code'])\n"
        "print(client.get('/ping').json())"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", tracked],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout.splitlines() == ["{'suggestions': ['cats']}", "503 circuit_open", "{'ping': 'pong'}"], (
        run.stderr
    )


VISIT = """
import json
from wsgiref.util import setup_testing_defaults
from django.db import connection
from django_postgresql import application, db, reports

def get(path):
    environ, said = {"PATH_INFO": path}, []
    setup_testing_defaults(environ)
    body = application(environ, lambda status, headers, *error: said.append(status))
    told = json.loads(b"".join(body))
    body.close()
    print(said[-1][:3], told.get("code", told), db.snapshot().in_use)

get("/items")
get("/reports/1")
get("/reports/9")
reports.force_open()
get("/reports/1")
get("/items")
db.force_open()
get("/items")
get("/ping")
connection.close_pool()
"""


def test_django_postgresql():
    """A report that takes too long is stopped, one workload is refused, then the whole database."""
    with PostgresServer.start() as server:
        told = conninfo_to_dict(server.url(""))
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", VISIT],
            cwd=EXAMPLES,
            env=os.environ | {f"PG{word.upper()}": told[word] for word in ("host", "port", "user")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.stdout.splitlines() == [
        "200 {'items': 1} 0",
        "200 {'report': 1} 0",
        "504 timeout 0",
        "503 circuit_open 0",
        "200 {'items': 1} 0",
        "503 circuit_open 0",
        "200 {'ping': 'pong'} 0",
    ], run.stderr
