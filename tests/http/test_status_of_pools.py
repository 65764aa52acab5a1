"""The status pages of guarded pools, for ASGI and WSGI alike: figures, history, events and metrics."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest
from sqlalchemy import create_engine, text

from guardrails import BulkheadFullError, Guard, protect
from guardrails._guard.guard import recent_events
from guardrails._http import history as _history
from guardrails._http.answers import as_json
from guardrails._http.history import COLUMNS, History
from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.holders import ADVICE
from guardrails.integrations import starlette, wsgi
from support import wsgi_client
from support.asgi_client import ask, http
from support.polling import poll

CANARY = "canary-3f1c"


def on_starlette(guards):
    app = starlette.status_app(guards)

    def get(path):
        seen = ask(app, http(path))
        return seen.status, seen.headers, seen.body

    return get


def on_wsgi(guards):
    app = wsgi.status_app(guards)

    def get(path):
        seen = wsgi_client.ask(validator(app), wsgi_client.environment(path))
        assert seen.raised is None
        return seen.status, seen.headers, seen.body

    return get


@pytest.fixture(params=[on_starlette, on_wsgi])
def site(request):
    """Makes a status application of either kind; gives what is on its pages."""
    return request.param


@pytest.fixture
def engine(tmp_path):
    """An engine with a secret in its address, and a guard of its own."""
    engine = create_engine(f"sqlite:///{tmp_path / CANARY}", pool_size=2, max_overflow=0)
    protect(engine, name="orders", max_wait_duration=0)
    yield engine
    engine.dispose()


def guard_of(engine):
    return engine.pool._guardrails


def test_status_has_the_figures_of_the_pool(site, engine):
    """Numbers, totals, and of each time its number, sum, percentiles and buckets."""
    with engine.connect() as connection:
        connection.execute(text(f"select '{CANARY}'"))
        status, _, body = site([guard_of(engine)])("/status.json")
    (shown,) = json.loads(body)["guards"]
    pool = shown["pool"]
    assert (status, pool["open"], pool["in_use"], pool["idle"], pool["capacity"]) == (200, 1, 1, 0, 2)
    assert (pool["checkouts"], pool["opened"], pool["exhausted"]) == (1, 1, 0)
    assert pool["wait"]["count"] == pool["use"]["count"] == 1
    assert 0 < pool["wait"]["p50"] <= pool["wait"]["p99"]
    assert pool["wait"]["buckets"]["+Inf"] == 1
    assert pool["hold"] == {
        "count": 0,
        "sum": 0,
        "p50": None,
        "p99": None,
        "buckets": pool["hold"]["buckets"],
    }
    assert [each["compartment"] for each in pool["routes"]] == [None]
    assert CANARY not in body.decode()


def test_metrics_are_the_same_under_asgi_and_wsgi(engine):
    """In the format that Prometheus asks for."""
    pages = [site([guard_of(engine)])("/metrics") for site in (on_starlette, on_wsgi)]
    for status, headers, body in pages:
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=")
        assert b'db_client_connection_max{db_client_connection_pool_name="orders"} 2.0' in body
        assert CANARY not in body.decode()
    assert pages[0][2] == pages[1][2]


def test_browser_page_is_the_same_under_asgi_and_wsgi(engine):
    """With the policy that allows its own script and nothing else."""
    pages = [site([guard_of(engine)])("/") for site in (on_starlette, on_wsgi)]
    for status, headers, body in pages:
        assert status == 200
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert "script-src 'sha256-" in headers["content-security-policy"]
        assert b"status.json" in body
    assert pages[0][2] == pages[1][2]


def test_a_pool_that_ran_out_is_an_event_with_its_cause(site, engine):
    """What the log says, for whoever comes late; the page has the advice for this cause."""
    with engine.connect(), engine.connect():
        with pytest.raises(BulkheadFullError):
            engine.connect()
        said = json.loads(site([guard_of(engine)])("/status.json")[2])
    (event,) = [each for each in said["events"] if each["event"] == "exhausted"]
    (shown,) = said["guards"]
    assert (event["guard"], event["cause"]) == ("orders", "nested")
    assert "2 of 2 connections checked out" in event["words"]
    assert CANARY not in event["words"]
    assert (shown["cause"], shown["advice"]) == ("nested", ADVICE["nested"])


def test_a_caller_refused_during_a_diagnosis_does_not_repeat_it(engine, monkeypatch, caplog):
    """One event and one line for a pool that ran out, however many callers are refused at that moment."""
    status = HolderRegistry.status

    def refused():
        with pytest.raises(BulkheadFullError):
            engine.connect()

    def interrupted(registry, **words):
        monkeypatch.setattr(HolderRegistry, "status", status)
        other = threading.Thread(target=refused)
        other.start()
        other.join()
        return status(registry, **words)

    monkeypatch.setattr(HolderRegistry, "status", interrupted)
    with engine.connect(), engine.connect():
        refused()
    assert HolderRegistry.status is status  # the other caller came in the middle
    assert [each["event"] for each in recent_events(guard_of(engine))] == ["exhausted"]
    assert sum("2 of 2 connections checked out" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(
    ("mount", "location"),
    [
        ("/internal", "internal/"),
        ("/a/b c", "b%20c/"),
        ("//evil.example", "evil.example/"),
        ("/x:y", "x%3Ay/"),
    ],
)
def test_wsgi_mount_without_its_slash_redirects_to_it(mount, location):
    """Relative to the page, so that no path makes it another host's address."""
    environ = wsgi_client.environment("/") | {"SCRIPT_NAME": mount, "PATH_INFO": ""}
    guard = Guard("db", max_concurrent_calls=1)
    seen = wsgi_client.ask(wsgi.status_app([guard]), environ)
    assert (seen.status, seen.headers["location"]) == (308, location)


def test_events_are_the_last_ones_of_all_guards(site, engine):
    """Changes of circuits and leaks, with the time of day; at most fifty."""
    db, cache = guard_of(engine), Guard("cache", max_concurrent_calls=1)
    before = time.time()
    for _ in range(30):
        db.force_open()
        cache.force_open()
        db.reset()
    events = json.loads(site([db, cache])("/status.json")[2])["events"]
    assert len(events) == 50
    assert [each["at"] for each in events] == sorted(each["at"] for each in events)
    assert before - 1 <= events[-1]["at"] <= time.time() + 1
    last = {"event": "state", "guard": "orders", "old": "forced_open", "new": "closed", "cause": "manual"}
    assert {key: events[-1][key] for key in last} == last


def test_history_is_there_for_whoever_comes_late(site, engine):
    """A row a second once a page was asked for; the checkouts of that second, and their times."""
    db = guard_of(engine)
    get = site([db])
    assert json.loads(get("/history.json")[2]) == {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "columns": [*COLUMNS],
        "guards": [{"name": "orders", "rows": []}],
    }

    def rows():
        with engine.connect() as connection:
            connection.execute(text("select 1"))
        return json.loads(get("/history.json")[2])["guards"][0]["rows"]

    poll(lambda: any(row[4] for row in rows()), "a second with a checkout is over", 10)
    row = dict(zip(COLUMNS, next(row for row in rows() if row[4]), strict=True))
    assert (row["state"], row["refused"], row["failed"]) == ("closed", 0, 0)
    assert 0 < row["wait_p50"] <= row["wait_p99"]
    assert 0 < row["hold_p50"] <= row["hold_p99"]


def test_history_is_two_minutes_of_fifty_guards(monkeypatch):
    """Whatever runs: memory does not grow."""
    started = []
    monkeypatch.setattr(_history, "run_later", lambda task, _: started.append(task))
    guards = [Guard(f"guard {number}", max_concurrent_calls=1) for number in range(60)]
    history = History(guards)
    history.start()
    history.start()
    (task,) = started
    for _ in range(150):
        assert task() == 1.0
    shown = history.fields()["guards"]
    assert len(shown) == 50
    assert {len(each["rows"]) for each in shown} == {120}
    del history
    assert task() is None


def test_slow_readers_hold_no_lock(engine):
    """Fifty that ask for the page and read nothing: checkouts go on, and another reader is served."""
    db = guard_of(engine)
    server = make_server("127.0.0.1", 0, wsgi.status_app([db]), handler_class=_Quiet)
    threads = [threading.Thread(target=server.handle_request) for _ in range(51)]
    for thread in threads:
        thread.start()
    slow = []
    try:
        for _ in range(50):
            reader = socket.create_connection(server.server_address, timeout=10)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            reader.sendall(b"GET /status.json HTTP/1.0\r\n\r\n")
            slow.append(reader)
        before = db.snapshot().pool.checkouts
        for _ in range(100):
            with engine.connect() as connection:
                connection.execute(text("select 1"))
        assert db.snapshot().pool.checkouts == before + 100
        with socket.create_connection(server.server_address, timeout=10) as reader:
            reader.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            assert reader.recv(100).startswith(b"HTTP/1.0 200")
    finally:
        for reader in slow:
            reader.close()
        for thread in threads:
            thread.join()
        server.server_close()


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass

    def log_request(self, *_):
        pass


def test_page_of_a_thousand_guards_costs_a_few_times_its_json(site):
    """That is 10 to 15 ms; reading the guards included."""
    guards = [Guard(f"guard {number}", max_concurrent_calls=1) for number in range(1_000)]
    get = site(guards)
    fields = json.loads(get("/status.json")[2])

    def best(work):
        times = []
        for _ in range(5):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    assert best(lambda: get("/status.json")) < 8 * best(lambda: as_json(fields))
