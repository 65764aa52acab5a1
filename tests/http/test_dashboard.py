"""The page for browsers: what it is sent with, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import socket
import subprocess

import pytest

from support.apps.dashboard_app import HOSTILE, app
from support.asgi_client import ask, http
from support.server_process import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_the_page_is_whole_and_says_what_a_browser_may_run():
    """Its own style and script, by their hashes, and what is beside it; nothing of anybody else's."""
    seen = ask(app, http("/internal/"))
    assert seen.status == 200
    assert seen.headers["content-type"] == "text/html; charset=utf-8"
    assert seen.headers["cache-control"] == "no-store"
    policy = dict(part.strip().split(" ", 1) for part in seen.headers["content-security-policy"].split(";"))
    text = seen.body.decode()
    for tag in ("style", "script"):
        ((inside,),) = [re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert not re.search(r"(src|href)=.?(https?:)?//", text)


def test_without_the_slash_it_leads_there():
    """Else the browser would ask for the figures one step too high."""
    seen = ask(app, http("/internal"))
    assert (seen.status, seen.headers["location"][-10:]) == (307, "/internal/")


def test_only_to_be_read():
    """It steers nothing."""
    assert ask(app, http("/internal/", method="POST")).status == 405


def test_the_figures_say_whose_they_are():
    """Of several workers each has figures of its own."""
    page = json.loads(ask(app, http("/internal/status.json")).body)
    assert (page["pid"], page["host"]) == (os.getpid(), socket.gethostname())


def looked_at(address, profile, *words, budget=5000):
    """What a browser makes of the page."""
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={profile}", f"--virtual-time-budget={budget}", "--dump-dom", *words),
            address,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_guard_that_refuses_half_of_its_calls_is_not_green(tmp_path):
    """Its circuit is closed, for its slots are full; the page says how many it refuses, at its head too."""
    command = "uvicorn crowded_app:app --log-level warning --port {port}"
    server = Server("uvicorn", command, tmp_path / "log")
    try:
        host, port = server.wait().address
        seen = looked_at(f"http://{host}:{port}/internal/", tmp_path / "profile", budget=9000)
    finally:
        server.stop()
    assert "<title>ready, one guard refuses calls - guardrails</title>" in seen
    assert re.search(
        r'<span class="between">closed</span><small class="bad">refuses \d+ % of its calls', seen
    )
    assert '<span class="good">closed</span>' in seen  # the other guard's


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_every_guard_and_runs_nothing_of_theirs(tmp_path):
    """Readiness, states, reasons, compartments; a name that is a tag stays a name."""
    command = "uvicorn dashboard_app:app --log-level warning --port {port}"
    server = Server("uvicorn", command, tmp_path / "log")
    try:
        host, port = server.wait().address
        seen = looked_at(f"http://{host}:{port}/internal/", tmp_path / "profile")
    finally:
        server.stop()
    assert "<title>ready, one circuit is open - guardrails</title>" in seen
    words = html.unescape(re.sub(r"<[^>]*>", "|", seen.partition("<tbody")[2].partition("</tbody>")[0]))
    for word in ("orders-db", "orders-db/reports", "closed", "forced_open", "refused: circuit_open 3", "0/2"):
        assert f"|{word}|" in words
    assert HOSTILE in words
    assert "|orders-db (2)|" in words
    assert "NaN" not in words
    assert 'data-name="refused/s"' in seen  # what a narrow screen shows beside the figure
