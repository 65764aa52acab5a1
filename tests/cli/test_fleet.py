"""``guardrails fleet``: the workers of a store, the sums, and what is wrong."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from guardrails.cli.fleet import fleet
from guardrails.fleet import _sqlite_store
from guardrails.fleet._records import Request
from guardrails.fleet._redis_store import RedisStore
from guardrails.fleet._rulings import VerdictRequest
from guardrails.fleet._sqlite_store import SQLiteStore
from guardrails.fleet._stores import Ask
from guardrails.testing.servers import ValkeyServer


def run(*words):
    """Runs the command; its exit code and what it printed."""
    done = CliRunner().invoke(fleet, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def asked(worker, has=2, budget=10, **more):
    settings = {"fresh": True, "cap": has, "safe": 0, "wants": 3, "minimum": 1, "most": 9, "host": "web-1"}
    return Ask("db", Request(worker, "aa", 1, has=has, budget=budget, **(settings | more)))


@pytest.fixture
def store(tmp_path):
    return SQLiteStore(str(tmp_path / "fleet.db"), "shop")


def test_workers_and_sums_are_listed(store, tmp_path):
    store.exchange([asked("w1"), asked("w2", has=4)])
    code, output = run(f"sqlite:///{tmp_path}/fleet.db")
    head, columns, first, second, sums = output.splitlines()
    assert code == 0
    assert head == "shop / db: 10 connections, learning"
    assert columns.split()[:6] == ["worker", "host", "has", "wants", "grant", "reserved"]
    assert first.split()[:7] == ["w1", "web-1", "2", "3", "2", "2", "0"]
    assert second.split()[:6] == ["w2", "web-1", "4", "3", "4", "4"]
    assert sums.split() == ["sum", "6", "6", "6", "6"]


def test_findings_are_said_and_exit_with_1(store, tmp_path, monkeypatch):
    store.exchange([asked("w1", has=8), asked("w2", has=4, budget=9, minimum=9)])
    now = _sqlite_store._now()
    monkeypatch.setattr(_sqlite_store, "_now", lambda: now + 4000)
    code, output = run(f"sqlite:///{tmp_path}/fleet.db")
    assert code == 1
    assert [line.strip() for line in output.splitlines() if "!" in line] == [
        "! 12 connections are open, more than the budget of 9",
        "! the workers name different budgets: 9, 10",
        "! the floors of the workers together exceed the budget",
        "! not in contact for more than 2.5 s: w1, w2",
    ]


def judged(worker, calls, failures):
    return Ask(
        "prices",
        VerdictRequest(worker, "aa", 1, 0, 0, calls, failures, 0, 0, 10, 500_000, 500_000, 2000, 10_000),
    )


def test_circuits_are_listed_with_their_sums(store, tmp_path, monkeypatch):
    now = _sqlite_store._now()
    monkeypatch.setattr(_sqlite_store, "_now", lambda: now)
    url = f"sqlite:///{tmp_path}/fleet.db"
    store.exchange([judged("w1", 8, 8)])
    line = "shop / prices: circuit closed; of 8 calls 8 failed and 0 were slow, at 1 of 1 workers\n"
    assert run(url) == (0, line)
    store.exchange([judged("w2", 8, 4)])
    code, output = run(url)
    assert (code, output.split(";")[0]) == (1, "shop / prices: circuit open for 2.0 s more")
    (verdict,) = json.loads(run(url, "--json")[1])["verdicts"]
    assert (verdict["circuit"], verdict["workers"], verdict["left"]) == ("open", 2, 2.0)


def test_json_has_the_same(store, tmp_path):
    store.exchange([asked("w1")])
    SQLiteStore(str(tmp_path / "fleet.db"), "other").exchange([asked("w9")])
    code, output = run(f"sqlite:///{tmp_path}/fleet.db", "--json", "--name", "shop")
    (budget,) = json.loads(output)["budgets"]
    assert code == 0
    assert (budget["fleet"], budget["name"], budget["connections"]) == ("shop", "db", 10)
    assert budget["sums"] == {"has": 2, "wants": 3, "grant": 2, "reserved": 2}
    (worker,) = budget["workers"]
    assert (worker["worker"], worker["has"], worker["state"]) == ("w1", 2, "in contact")


def test_a_store_without_workers_is_fine(tmp_path):
    """It is there, and empty. A name without a file is an error, and makes none."""
    url = f"sqlite:///{tmp_path}/fleet.db"
    code, output = run(url)
    assert (code, "there is no such file" in output, list(tmp_path.iterdir())) == (2, True, [])
    SQLiteStore(f"{tmp_path}/fleet.db", "shop").exchange([])
    assert run(url) == (0, "no workers are known.\n")


def test_redis_is_read_and_its_password_not_shown():
    with ValkeyServer.start("--requirepass", "hunter2") as server:
        url = f"redis://:hunter2@127.0.0.1:{server.port}"
        store = RedisStore(url, "shop")
        store.exchange([asked("w1")])
        store.close()
        code, output = run(url)
        assert (code, output.splitlines()[0]) == (0, "shop / db: 10 connections, learning")
        assert run(url.replace("hunter2", "wrong")) == (2, "the store cannot be read: it refuses the login\n")


@pytest.mark.parametrize("words", [(), ("db", "shadow"), ("nowhere", "off"), ("--budget", "db")])
def test_each_store_is_closed_when_the_command_ends(store, tmp_path, monkeypatch, words):
    opened, closed = [], []
    init, close = SQLiteStore.__init__, SQLiteStore.close
    monkeypatch.setattr(
        SQLiteStore, "__init__", lambda self, *given: [opened.append(self), init(self, *given)][1]
    )
    monkeypatch.setattr(SQLiteStore, "close", lambda self: [closed.append(self), close(self)][1])
    store.exchange([asked("w1")])
    run(f"sqlite:///{tmp_path}/fleet.db", *words)
    assert opened
    assert set(closed) == set(opened)


@pytest.mark.parametrize("url", ["http://:hunter2@x", "shop", "redis://:hunter2@host:port"])
def test_a_wrong_url_is_a_usage_error_without_its_text(url):
    code, output = run(url)
    assert code == 2
    assert "url must" in output
    assert "hunter2" not in output


# --- a large fleet, and orders --------------------------------------------------------------------------


def test_a_large_fleet_is_its_largest_workers_and_a_sum(store, tmp_path, monkeypatch):
    now = _sqlite_store._now()
    monkeypatch.setattr(_sqlite_store, "_now", lambda: now)
    store.exchange([asked(f"w{n:02}", has=n, budget=8000, most=60) for n in range(60)])
    code, output = run(f"sqlite:///{tmp_path}/fleet.db")
    lines = output.splitlines()
    assert (code, len(lines)) == (0, 24)
    assert lines[-1] == "  the largest 20 of 60 workers; --all lists all"
    assert lines[-2].split()[:3] == ["sum", "1770", "180"]
    assert [line.split()[0] for line in lines[2:-2]] == [f"w{n}" for n in range(40, 60)]
    assert len(run(f"sqlite:///{tmp_path}/fleet.db", "--all")[1].splitlines()) == 63
    assert len(json.loads(run(f"sqlite:///{tmp_path}/fleet.db", "--json")[1])["budgets"][0]["workers"]) == 60


def test_an_order_is_given_listed_and_ended(store, tmp_path):
    store.exchange([asked("w1")])
    url = f"sqlite:///{tmp_path}/fleet.db"
    code, output = run(url, "db", "force_open", "--by", "ops@bastion")
    assert (code, output) == (0, "ordered: db force_open, by ops@bastion; the workers obey within 1.5 s\n")
    assert run(url, "db", "shadow")[0] == 0
    lines = run(url)[1].splitlines()
    assert lines[-1].startswith("shop / db: force_open, ordered by ops@bastion at 20")
    assert lines[-2].startswith("shop / db: shadow, ordered by ")
    assert [each["order"] for each in json.loads(run(url, "--json")[1])["orders"]] == ["shadow", "force_open"]
    assert run(url, "db", "auto")[0] == 0
    assert "ordered by" not in run(url)[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing", "shadow"], "no fleet has a budget or verdict 'nothing'; known: db"),
        (["db"], "an order needs TARGET"),
        (["db", "dance"], "'dance' is not one of"),
        (["db", "shadow", "--by", "a b"], "by must be a text of 1 to 100 visible ASCII"),
        (["db", "shadow"], "several fleets have 'db': say which with --name: other, shop"),
    ],
)
def test_a_wrong_order_is_a_usage_error(store, tmp_path, words, said):
    store.exchange([asked("w1")])
    if "several" in said:
        SQLiteStore(str(tmp_path / "fleet.db"), "other").exchange([asked("w9")])
    code, output = run(f"sqlite:///{tmp_path}/fleet.db", *words)
    assert code == 2
    assert said in " ".join(output.split())
