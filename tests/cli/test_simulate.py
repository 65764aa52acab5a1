"""``guardrails simulate``: its tables, its data, and what it says to wrong input."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from guardrails.cli.simulate import simulate
from guardrails.simulation.fleet_model import SimulatedFleet

HEAD = "moment,route,duration,outcome\n"


def run(*words, text=None):
    return CliRunner().invoke(simulate, [*words], input=text)


@pytest.fixture
def trace(tmp_path):
    """A table that is locked for three seconds, beside one that is not."""
    path = tmp_path / "night.csv"
    lines = [f"{1000 + n / 50},GET /a,{3.0 if 100 < n < 250 else 0.01},success" for n in range(500)]
    lines += [f"{1000 + n / 20 + 0.001},GET /b,0.01,success" for n in range(200)]
    path.write_text(HEAD + "\n".join(lines))
    return str(path)


def test_policies_stand_side_by_side(trace):
    done = run(
        trace, "--policy", "slots=10", "--policy", "slots=40,timeout=1", "--set", "breaker.open_jitter=0"
    )
    assert done.exit_code == 0
    assert "trace: 700 calls of 2 routes in 10 s from 1000.0 s; 700 success; at most" in done.output
    assert re.search(r"most slots in use +8 +\d\d\n", done.output)
    assert (
        "slots=10: circuits\n  1004.0 s  GET /a opened (stalled) for 2.0 s, 1 round of probes\n"
        in done.output
    )
    assert "slots=40,timeout=1: no circuit would have opened" in done.output


def test_the_data_hold_the_figures_of_the_table(trace):
    data = json.loads(run(trace, "--set", "slots=10", "--json").output)
    (policy,) = data["policies"]
    assert data["trace"]["calls"] == policy["calls"] == 700
    assert policy["admitted"] + sum(policy["refused"].values()) == 700
    assert policy["routes"]["GET /b"]["calls"] == 200
    assert policy["openings"][0]["guard"] == "GET /a"
    assert policy["refused_good"] + policy["refused_bad"] == sum(policy["refused"].values())


@pytest.mark.parametrize("first", ["max_concurrent_calls = 1", "slots = 1"])
@pytest.mark.parametrize("then", ["slots=3", "max_concurrent_calls=3"])
def test_a_change_of_the_slots_counts_by_either_name(tmp_path, first, then):
    (tmp_path / "p.toml").write_text(first)
    words = (
        "-",
        "--policy",
        str(tmp_path / "p.toml"),
        "--set",
        then,
        "--set",
        "max_wait_duration=0",
        "--json",
    )
    done = run(*words, text=HEAD + "0,a,0.5,success\n0.1,a,0.5,success\n0.2,a,0.5,success\n")
    assert json.loads(done.output)["policies"][0]["admitted"] == 3


def test_a_replay_ignores_the_settings_of_the_environment(monkeypatch):
    """The policy that it prints is the one that it runs."""
    for name in ("POOL_MAX_WAIT_DURATION", "POOL_TIMEOUT", "MODE"):
        monkeypatch.setenv(f"GUARDRAILS_{name}", "off" if name == "MODE" else "2")
    words = ("-", "--policy", "slots=1,max_wait_duration=0.05", "--json")
    done = run(*words, text=HEAD + "0,a,0.5,success\n0.1,a,0.5,success\n")
    assert json.loads(done.output)["policies"][0]["refused"] == {"queue_timeout": 1}


def test_a_policy_names_its_slots_once(tmp_path):
    (tmp_path / "p.toml").write_text("slots = 1\nmax_concurrent_calls = 2")
    done = run("-", "--policy", str(tmp_path / "p.toml"), text=HEAD + "0,a,0.5,success\n")
    assert (done.exit_code, "slots is another name of max_concurrent_calls" in done.output) == (2, True)


def test_a_trace_is_read_from_standard_input():
    done = run("-", "--set", "slots=1", text=HEAD + "1,a,1,success\n")
    assert done.exit_code == 0
    assert "no circuit would have opened" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a TRACE, or --workers"),
        (["missing.csv", "--set", "slots=1"], "the trace cannot be read: No such file or directory"),
        (["-", "--set", "slots=1"], "the header must name the columns"),
        (["-"], "the number of slots is missing"),
        (["-", "--set", "slot=1"], "did you mean 'slots'?"),
    ],
)
def test_wrong_input_is_a_usage_error_that_names_it(words, said):
    done = run(*words, text="")
    assert (done.exit_code, said in done.output) == (2, True), done.output


# --- fleets ----------------------------------------------------------------------------------------


def test_a_fleet_that_keeps_its_budget_exits_with_0():
    done = run("--workers", "12", "--budget", "96", "--hours", "0.1", "--faults", "crash,partition")
    assert done.exit_code == 0, done.output
    assert "12 workers, 96 connections, floor 1, 0.1 h, seed 1: crash, partition" in done.output
    assert "most open connections" in done.output
    assert re.search(r"commands at the store +\d+\.?\d* a second", done.output)
    assert " killed" in done.output


def test_the_data_of_a_fleet_hold_the_same():
    words = ["--workers", "6", "--budget", "48", "--hours", "0.05", "--faults", "all", "--json"]
    data = json.loads(run(*words).output)
    assert data["invariant_kept"] is True
    assert data["most_open"] <= 48
    assert data["served"] > data["served_by_static_division"]
    assert data == json.loads(run(*words).output)


def test_a_budget_that_is_not_kept_exits_with_1(monkeypatch):
    monkeypatch.setattr(
        SimulatedFleet, "check", lambda fleet: fleet.sums.note_broken(fleet.now, fleet.open, 3)
    )
    done = run("--workers", "4", "--budget", "32", "--hours", "0.01")
    assert done.exit_code == 1
    assert "! the budget was not kept at" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "4"], "--workers needs --budget"),
        (["--workers", "0", "--budget", "9"], "workers must be a whole number from 1"),
        (["--workers", "4", "--budget", "9", "--faults", "fire"], "faults must be some of crash"),
        (["trace.csv", "--workers", "4"], "give a TRACE, or --workers and --budget"),
    ],
)
def test_a_wrong_fleet_is_a_usage_error(words, said):
    done = run(*words)
    assert (done.exit_code, said in done.output) == (2, True), done.output
