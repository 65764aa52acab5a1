"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from support.paths import EXAMPLES, python_path


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


def test_log_lines():
    """Every line is JSON; a transition has its fields, refusals are counted in one line."""
    told = [json.loads(line) for line in told_by("log_lines.py")]
    assert {(line["logger"], line["level"]) for line in told} == {
        ("guardrails", "warning"),
        ("shop.circuits", "warning"),
    }
    (changed,) = (line for line in told if line["logger"] == "shop.circuits")
    assert (changed["guard"], changed["old"], changed["new"]) == ("search", "closed", "open")
    assert told[-1]["event"] == "guard 'search': in 1.0 s 1 refused (the circuit is open: 1)"


def test_telemetry():
    """The refusal is on its span, and the figures are collected."""
    told = told_by("telemetry.py")
    refusal = {"guardrails.guard": "search", "guardrails.reason": "circuit_open"}
    assert told[:2] == ["refused: circuit_open", f"GET /suggest [('guardrails.rejected', {refusal})]"]
    assert {"guardrails.breaker_state", "guardrails.rejections"} <= set(told[2:])


@pytest.mark.slow
def test_fastapi_service():
    """The tests that the service brings along pass: a locked table, a frozen cache."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=EXAMPLES / "fastapi_service",
        env=os.environ | {"PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
