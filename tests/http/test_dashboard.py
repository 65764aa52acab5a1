"""The page for browsers: what it is sent with, and what a browser makes of it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket

import pytest

from support.apps.dashboard_app import HOSTILE, app
from support.asgi_client import ask, http
from support.browser import CHROMIUM, Browser
from support.server_process import Server


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


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests."""
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def shown(browser, tmp_path):
    """Shows the page of an application of ``support/apps``; gives the browser and the server."""

    @contextlib.contextmanager
    def show(name, **options):
        server = Server(
            "uvicorn", f"uvicorn {name}:app --log-level warning --port {{port}}", tmp_path / "log"
        )
        try:
            host, port = server.wait().address
            browser.begin(**options)
            browser.open(f"http://{host}:{port}/internal/")
            browser.wait("document.querySelector('tbody tr') !== null")
            yield browser, server
            assert browser.faults == []
            assert {address.split("/")[2] for address in browser.asked} == {f"{host}:{port}"}
        finally:
            browser.open("about:blank")  # else the page would go on asking the server that has ended
            server.stop()

    return show


ROWS = "document.querySelectorAll('table[aria-label=Guards] tbody tr')"

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.mark.slow
@needs_browser
def test_a_guard_that_refuses_half_of_its_calls_is_not_green(shown):
    """Its circuit is closed, for its slots are full; the page says how many it refuses, at its head too."""
    with shown("crowded_app") as (browser, _):
        browser.wait("document.title === 'ready, one guard refuses calls - guardrails'")
        seen = browser.read("document.querySelector('tbody').innerHTML")
    assert re.search(
        r'<span class="between">closed</span><small class="(bad|between)">refuses \d+ % of its calls', seen
    )
    assert '<span class="good">closed</span>' in seen  # the other guard's


@needs_browser
def test_a_browser_shows_every_guard_and_runs_nothing_of_theirs(shown):
    """Readiness, states, reasons, compartments; a name that is a tag stays a name."""
    with shown("dashboard_app") as (browser, _):
        assert browser.read("document.title") == "ready, one circuit is open - guardrails"
        words = browser.words()
        assert browser.read("document.querySelectorAll('img, main script').length") == 0
    for word in ("orders-db", "orders-db/reports", "closed", "forced_open", "refused: circuit_open 3", "0/2"):
        assert word in words
    assert HOSTILE in words
    assert "orders-db (2)" in words
    assert "NaN" not in words
    assert "undefined" not in words


@needs_browser
def test_a_guard_in_shadow_is_marked_in_the_table_on_its_card_and_at_the_head(shown):
    """With what enforcing would have refused, by reason and by route."""
    with shown("shadow_app") as (browser, _):
        browser.wait("document.querySelector('.card.shadow') !== null")
        words = browser.words()
        assert browser.read("document.querySelector('tr.shadow th').innerText").startswith("orders-db")
        assert browser.read("document.querySelector('#verdict').innerText").startswith("ready")
    assert "2 guards of 3: refuses and stops nothing; counts what it would have done" in words
    assert "Enforcing would have refused 4 calls of 5 and stopped 0 since " in words
    assert "bulkhead_full 4" in words


@needs_browser
def test_the_share_that_shadow_would_refuse_is_of_all_calls(shown):
    """Four of five: the calls that enforcing would refuse are not among those that are in."""
    with shown("shadow_app") as (browser, _):
        browser.wait(f"[...{ROWS}].some(row => /would refuse/.test(row.innerText))")
        (row,) = browser.read(
            f"[...{ROWS}].map(row => row.innerText).filter(text => text.startsWith('stock-db'))"
        )
    share = int(re.search(r"would refuse (\d+) % of its calls", row)[1])
    assert 75 <= share <= 85


@needs_browser
def test_the_card_of_a_compartment_that_refuses_opens_by_itself(shown):
    """Its guard's card does not show the compartment's refusals."""
    with shown("shadow_app") as (browser, _):
        browser.wait("document.querySelector('.card.unwell') !== null")
        assert browser.read("document.querySelector('.card.unwell').ariaLabel") == "mail/letters"


@needs_browser
def test_routes_and_times_that_look_alike_are_told_apart(shown):
    """A route in a compartment and outside of all; a duration below a tenth of a millisecond."""
    times = {"count": 1, "sum": 1.0, "p50": 0.00004, "p99": 0.002}
    seen = {"wait": times, "hold": times, "use": times}
    rows = [{"route": "GET /a", "compartment": part, **seen} for part in ("orders", None)]
    guard = json.dumps({"path": "db", "guard": {"pool": {"routes": rows}}})
    with shown("dashboard_app") as (browser, _):
        names, cell = browser.read(
            f"""(box => {{
                patch(box, [h("div", null, routes({guard}))]);
                const texts = what => Array.from(box.querySelectorAll("tbody " + what), e => e.textContent);
                return [texts("th"), texts("td")[1]];
            }})(document.createElement("div"))"""
        )
    assert names == ["GET /a, in orders", "GET /a, in no compartment"]
    assert cell == "40 µs / 2.0 ms"


@needs_browser
def test_the_history_of_another_worker_is_not_drawn_over_the_figures_of_this_one(shown):
    """The page keeps it for the time when that worker answers with its figures."""
    guard = {
        "name": "db",
        "state": "closed",
        "in_use": 1,
        "waiting": 0,
        "admitted": 1,
        "rejected": {},
        "failed": 0,
        "slow": 0,
    }
    pages = json.dumps({pid: {"pid": pid, "host": "web", "guards": [guard]} for pid in (1, 2)})
    rows = {
        "pid": 2,
        "host": "web",
        "columns": ["seconds_ago", "in_use"],
        "guards": [{"name": "db", "rows": [[9, 7]]}],
    }
    with shown("dashboard_app") as (browser, _):
        drawn = browser.read(
            f"""[[1, {json.dumps(rows)}, 1000], [2, null, 1002], [1, null, 1004], [2, null, 1140]]
                .map(([pid, rows, now]) => notice({pages}[pid], rows, now)[0]
                    .curve.map(each => [each.at, each.in_use]))"""
        )
    assert drawn == [[[1000, 1]], [[991, 7], [1002, 1]], [[1000, 1], [1004, 1]], [[1140, 1]]]


@needs_browser
def test_a_leak_is_marked_with_the_line_that_took_the_connection(shown):
    """The holders of one place share a row; a route that is a tag stays text."""
    with shown("leaking_app") as (browser, _):
        browser.wait("document.querySelector('tr.leak') !== null")
        words = browser.words()
        row = browser.read("document.querySelector('tr.leak').innerText")
        assert browser.read("document.querySelectorAll('img, main script').length") == 0
    assert "2 connections leaked" in words
    assert "Leak: connections were not returned; close them in a with block" in words
    assert re.search(r"leaking_app\.py:\d+ in forget", row)


@needs_browser
def test_a_thousand_guards_make_a_bounded_page_with_a_filter(shown):
    """The unwell ones come first; the others are found by name, and opened with the keyboard."""
    with shown("crowd_of_guards_app", width=390) as (browser, _):
        assert browser.read(f"{ROWS}.length") == 60
        assert browser.read(f"{ROWS}[0].querySelector('button').innerText") == "guard-777"
        assert browser.read("document.documentElement.scrollWidth") <= 390
        field = "document.querySelector('input')"
        browser.read(f"{field}.value = 'guard-42'; {field}.oninput({{target: {field}}})")
        assert browser.read(f"{ROWS}.length") == 11
        browser.read("document.querySelector('tbody button.name').focus()")
        browser.press("Enter")
        browser.wait("document.querySelector('.card[aria-label=guard-42]') !== null")
