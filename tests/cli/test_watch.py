"""``guardrails watch`` on a service that runs: the figures, their change, and what else may come."""

from __future__ import annotations

import contextlib
import contextvars
import http.server
import io
import itertools
import json
import socket
import threading

import pytest
from click.testing import CliRunner
from rich.console import Console

from guardrails import Guard, RejectedError
from guardrails.cli.watch import _busy, _Look, _Row, _rows, _table, watch
from support.status_site import answering, served, serving


def run(*words):
    """Runs the command; its exit code and what it printed."""
    done = CliRunner().invoke(watch, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def pages(*words):
    """The readings of a run with ``--json``."""
    code, output = run("--json", "--every", "0.1", *words)
    return code, [json.loads(line) for line in output.splitlines()]


def test_figures_and_their_change():
    """The page, and what was added a second between two readings of it."""
    guard = Guard("orders", max_concurrent_calls=5)
    part = guard.compartment("reports")
    with served(guard) as address:
        stop = threading.Event()

        def work():
            while not stop.wait(0.002):
                part.run(int)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            code, (first, second) = pages(address, "--times", "2")
        finally:
            stop.set()
            worker.join()
    assert code == 0
    assert first["rates"] == {}
    assert second["ready"] is True
    assert set(second["rates"]) == {"orders", "orders/reports"}
    assert 0 < second["rates"]["orders"]["in"] < 600
    added = second["guards"][0]["admitted"] - first["guards"][0]["admitted"]
    assert added > 0


def test_a_refusal_of_the_guard_stands_in_the_row_of_the_compartment_that_was_called():
    guard = Guard("orders", max_concurrent_calls=1, max_wait_duration=0)
    part = guard.compartment("reports")
    with served(guard) as address:
        with guard.call():
            for _ in range(3):
                with pytest.raises(RejectedError):
                    part.run(int)
        _, (page,) = pages(address, "--times", "1")
    (row,) = page["guards"]
    assert sum(row["rejected"].values()) == 3
    (inner,) = row["compartments"]
    assert (inner["rejected"], inner["rejected_by_parent"]) == ({}, 3)
    assert [each.totals["refused"] for each in _rows("", page["guards"])] == [3, 3]


def test_a_refusal_of_a_compartment_stands_in_the_row_of_its_guard_too():
    """As its calls do; the row of another compartment has none."""
    guard = Guard("orders", max_concurrent_calls=5, max_wait_duration=0)
    part = guard.compartment("reports", max_concurrent_calls=1)
    guard.compartment("other")
    with part.call():
        for _ in range(3):
            with pytest.raises(RejectedError):
                contextvars.Context().run(part.run, int)
    with served(guard) as address:
        _, (page,) = pages(address, "--times", "1")
    assert [each.totals["refused"] for each in _rows("", page["guards"])] == [3, 3, 0]


@pytest.mark.parametrize("mode", ["enforce", "shadow", "off"])
def test_a_guard_that_does_not_enforce_shows_its_mode(mode):
    """Its circuit may be open and refuses nothing."""
    with served(Guard("orders", max_concurrent_calls=5, mode=mode)) as address:
        _, output = run(address, "--times", "1")
    assert "orders" in output
    assert [each for each in ("(enforce)", "(shadow)", "(off)") if each in output] == (
        [] if mode == "enforce" else [f"({mode})"]
    )


class Workers(http.server.BaseHTTPRequestHandler):
    """Two workers of one address that answer in turn; each has its own sums, and admits ten more a turn."""

    asked = itertools.count()
    named = True

    def do_GET(self):
        turn, worker = divmod(next(self.asked), 2)
        guard = GUARD | {"admitted": 1000 * worker + 10 * turn}
        page = {"ready": True, "reasons": [], "guards": [guard]}
        page |= {"pid": 70 + worker, "host": "shop\x1b-1"} if self.named else {}
        body = json.dumps(page).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Writes nothing."""


GUARD = {"name": "db", "oldest_in_flight": None, "rejected": {}, "failed": 0, "slow": 0, "state": "closed"}
GUARD |= {"waiting": 0, "in_use": 0, "max_concurrent_calls": 5, "compartments": []}


@contextlib.contextmanager
def workers(**attributes):
    """Yields their address."""
    handler = type("Handler", (Workers,), {"asked": itertools.count(), **attributes})
    with serving(handler) as address:
        yield address


def test_rates_are_those_of_one_process_where_workers_answer_in_turn():
    """Ten calls in two turns of 0.1 s or more, and not the thousand by which the sums of the two differ."""
    with workers() as address:
        _, readings = pages(address, "--times", "4")
    assert [each["pid"] for each in readings] == [70, 71, 70, 71]
    assert [each["processes"] for each in readings] == [1, 2, 2, 2]
    assert [each["rates"] for each in readings[:2]] == [{}, {}]
    assert all(0 < each["rates"]["db"]["in"] <= 50 for each in readings[2:])


def test_table_names_the_process():
    with workers() as address:
        _, output = run(address, "--times", "2", "--every", "0.1")
    first, second = (line.strip() for line in output.splitlines() if "ready" in line)
    assert first == "ready; process 70 on shop?-1"
    assert second == "ready; process 71 on shop?-1, one of 2 seen"


def test_a_page_without_a_process_is_that_of_one():
    with workers(named=False) as address:
        _, output = run(address, "--times", "2", "--every", "0.1")
    assert "process" not in output


def test_usable_slots_during_a_ramp():
    """A column has both numbers while they differ; a page of an older version has one."""
    guard = {"in_use": 2, "max_concurrent_calls": 20}
    assert _busy(guard) == _busy(guard | {"usable_slots": 20}) == "2/20"
    assert _busy(guard | {"usable_slots": 5}) == "2/5 of 20"


def test_table_for_people():
    """One row for each guard and compartment; an open circuit is exit code 1."""
    guard = Guard("orders", max_concurrent_calls=5)
    guard.compartment("reports").force_open()
    with served(guard) as address:
        code, output = run(address, "--times", "1")
        assert code == 1
        assert "ready" in output
        rows = [line for line in output.splitlines() if "0/" in line]
        assert ["orders" in rows[0], "closed" in rows[0], "0/5" in rows[0]] == [True] * 3
        assert ["orders/reports" in rows[1], "forced_open" in rows[1]] == [True] * 2
        assert run(address + "/status.json", "--times", "1")[0] == 1


def test_no_figure_is_cut_at_80_columns():
    """A long name is broken over lines; all else is whole, with the largest figures there are."""
    rates = {"in": 12345.6, "refused": 12345.6, "failed": 12345.6, "slow": 12345.6}
    row = _Row("orders-db/GET /reports/{month}", "forced_open", "100/100", 1000, 1234.5, {})
    look = _Look(None, {"ready": True, "reasons": []}, [row], {row.path: rates})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_table(look, console.width))
    text = console.export_text()
    assert "…" not in text
    assert "ready, guards that refuse calls: 1" in text
    assert "".join(line[:10].strip() for line in text.splitlines()[2:]).startswith("orders-db/")
    for word in ("forced_open", "100/100", "1000", "1234.5 s"):
        assert word in text
    assert text.count("12345.6") == 4


def test_names_cannot_write_on_the_terminal():
    """Neither control characters nor the table's own markup."""
    with served(Guard("a\x1b[31m[bold]b", max_concurrent_calls=1)) as address:
        code, output = run(address, "--times", "1")
    assert code == 0
    assert "\x1b[31m" not in output
    assert "a?[31m[bold]b" in output


def test_missing_service_is_a_clear_error():
    """Said, and looked for again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, readings = pages(f"127.0.0.1:{port}", "--times", "2")
    assert code == 1
    assert [each["trouble"] for each in readings] == ["it does not answer: ConnectionRefusedError"] * 2
    assert "it does not answer" in run(f"127.0.0.1:{port}", "--times", "1")[1]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            404,
            b"",
            (
                "it answers 404: no status page is there; app.mount('/internal', status_app([db])) makes "
                "one, in Django path('internal/', include('guardrails.integrations.django.urls'))"
            ),
        ),
        (500, b"", "it answers 500"),
        (200, b"<html>", "this is no status page of guardrails"),
        (200, b"[]", "this is no status page of guardrails"),
        (200, b'{"guards": [{"name": 1}]}', "this is no status page of guardrails"),
        (200, b'{"guards": []}', "this is no status page of guardrails"),
        (200, b'{"guards": [{"name": "a"}], "ready": true, "reasons": []}', "this is no status page"),
    ],
)
def test_other_pages_are_a_clear_error(status, body, said):
    """Exit 1 and one line, whatever comes."""
    with answering(status, body) as address:
        code, (reading,) = pages(address, "--times", "1")
    assert code == 1
    assert said in reading["trouble"]


@pytest.mark.parametrize(
    "words",
    [
        ["ftp://127.0.0.1/"],
        ["http://"],
        ["http://127.0.0.1:no/"],
        ["http://user:secret@127.0.0.1/"],
        ["127.0.0.1:1", "--every", "0"],
        ["127.0.0.1:1", "--times", "0"],
        [],
    ],
)
def test_wrong_arguments_are_named(words):
    """Exit 2, and no password."""
    code, output = run(*words)
    assert code == 2
    assert "secret" not in output
