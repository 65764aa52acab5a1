"""The examples run as they stand."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def test_circuit_opens():
    """The story is told in the order the page promises."""
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "circuit_opens.py"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[:5] == [*["failed: search is down"] * 4, "  search: closed -> open (failure_rate)"]
    assert lines[6].startswith("refused at once")
    assert lines[-1] == "<Guard 'search' closed, 0/20 busy, 0 waiting>"


def test_retries():
    """One stumble is hidden, a storm is not made, and every refusal is answered."""
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "retries.py"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert [line.rpartition(": ")[2] for line in run.stdout.splitlines()] == [
        "19.0, 1 attempts",
        "19.0, 2 attempts",
        "no price today (ConnectionError), 2 attempts",
        "no price today (ConnectionError), 1 attempts",
        "no price today (DeadlineSpentError), 0 attempts",
        "no price today (CircuitOpenError), 0 attempts",
        "<RetryBudget 2 retries of 6 calls, 0 available>",
    ]


def test_fastapi_app(tmp_path, monkeypatch):
    """The service answers, and refuses properly when its circuit is held open."""
    testclient = pytest.importorskip("fastapi.testclient")
    monkeypatch.setitem(os.environ, "DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/db")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fastapi_app  # noqa: PLC0415 - reads its settings when imported

    with testclient.TestClient(fastapi_app.app) as client:
        assert client.get("/items").json() == {"items": 1}
        assert client.get("/reports").json() == {"report": 2}
        fastapi_app.reports.force_open()
        refused = client.get("/reports")
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        assert client.get("/items").status_code == 200
        fastapi_app.reports.reset()
        client.portal.call(fastapi_app.engine.dispose)
