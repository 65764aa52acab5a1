"""The size of a pool: Erlang's formula against figures from the books and a simulated queue; the command."""

from __future__ import annotations

import heapq
import json
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import ConfigurationError
from guardrails._pool.sizing import Demand, Fleet, pools, room_for, wanted
from support.paths import DOCS


def pool_of(demand, size):
    """What a pool of so many connections does."""
    return next(pools(demand, size))


@pytest.mark.parametrize(
    ("size", "load", "waiting"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (10, 8.0, 0.40918), (100, 90.0, 0.21699)],
)
def test_erlangs_c_formula(size, load, waiting):
    """The share that waits: one server by hand, the others as the tables of queueing theory have them."""
    assert pool_of(Demand(load, 1.0), size).waiting == pytest.approx(waiting, rel=1e-3)


def simulated(demand, size, calls, seed):
    """A queue for so many connections, call by call: the share that waited, and what 99 % waited at most."""
    dice, now, waits = random.Random(seed), 0.0, []
    free_at = [0.0] * size
    for _ in range(calls):
        now += dice.expovariate(demand.rate)
        start = max(now, heapq.heappop(free_at))
        heapq.heappush(free_at, start + dice.expovariate(1 / demand.hold))
        waits.append(start - now)
    waits.sort()
    return sum(wait > 0 for wait in waits) / calls, waits[int(0.99 * calls)]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("rate", "hold", "size"), [(240, 0.05, 16), (30, 0.1, 5), (8, 1.0, 10)])
def test_a_simulated_queue_behaves_so(rate, hold, size):
    """Of 200,000 calls as many wait, and as long, as the formula says."""
    demand = Demand(rate, hold)
    pool = pool_of(demand, size)
    waiting, wait = simulated(demand, size, 200_000, seed=1)
    assert waiting == pytest.approx(pool.waiting, rel=0.08)
    assert wait == pytest.approx(pool.wait, rel=0.12)


demands = st.builds(
    Demand,
    rate=st.floats(0.001, 5000),
    hold=st.floats(0.0001, 1.0),
    target_wait=st.sampled_from([0, 0.005, 0.05, 1.0]),
)


@given(demands)
def test_the_smallest_pool_that_keeps_the_target(demand):
    """It keeps it and is not too busy; one connection less is too busy, or lets its callers wait too long."""
    pool = wanted(demand)
    assert pool.wait <= demand.target_wait
    assert pool.busy <= 0.8 + 1e-6
    if pool.size > 1:
        smaller = pool_of(demand, pool.size - 1)
        assert smaller.busy > 0.8 - 1e-6 or smaller.wait > demand.target_wait


@given(demands, st.integers(1, 50))
def test_the_rate_that_a_pool_has_room_for(demand, size):
    """A little less of it fits, and a little more does not."""
    rate = room_for(demand, size)
    assert wanted(Demand(rate * 0.999, demand.hold, demand.target_wait)).size <= size
    assert wanted(Demand(rate * 1.001, demand.hold, demand.target_wait)).size > size


def test_a_pool_that_cannot_keep_up_lets_wait_for_ever():
    """As many connections as are busy on average are too few."""
    assert pool_of(Demand(10, 1.0), 10).wait == float("inf")


@pytest.mark.parametrize(
    ("most", "workers", "share"), [(None, 4, None), (100, 4, 24), (100, 98, 0), (2, 1, 0)]
)
def test_what_each_process_may_have(most, workers, share):
    """The server's connections less the reserved ones, rounded down."""
    assert Fleet(workers, most).share == share


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Demand(float("nan"), 1), "rate must be a number of checkouts per second above 0, got nan"),
        (lambda: Demand(True, 1), "rate must be a number"),
        (lambda: Demand(1, 0), "hold must be a number of seconds above 0"),
        (lambda: Demand(1, 1, -0.1), "target_wait must be a number of seconds from 0"),
        (lambda: Demand(1e6, 1), "rate x hold must be at most 8,000"),
        (lambda: Fleet(0), "workers must be a whole number from 1"),
        (lambda: Fleet(1, 0), "max_connections must be a whole number from 1"),
        (lambda: Fleet(1, 100, -1), "reserved must be a whole number from 0"),
        (lambda: Fleet(1, 100, 3, -1), "kept must be a whole number from 0"),
    ],
)
def test_what_cannot_be(make, said):
    """Named with its value and what is allowed."""
    with pytest.raises(ConfigurationError, match=said):
        make()


def size(*words):
    """Runs the command in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "guardrails.cli", "size", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_page_shows_what_the_command_prints():
    """The settings, what is around them, and the sum over all processes."""
    page = (DOCS / "guides" / "pool-size.md").read_text()
    command, printed = re.search(
        r"```sh\nguardrails size (.*?)\n```\n\n```text\n(.*?)```", page, re.DOTALL
    ).groups()
    run = size(*command.split())
    assert (run.returncode, run.stdout) == (0, printed)


def test_a_fleet_that_does_not_fit_is_a_finding():
    """Exit 1, and the rate that would fit; with --json the same."""
    words = ["--rate", "2400", "--hold", "0.05", "--workers", "8", "--max-connections", "100"]
    run = size(*words)
    assert (run.returncode, "It does not fit: 8 x 19 = 152 of 100" in run.stdout) == (1, True)
    answer = json.loads(size(*words, "--json").stdout)
    assert (answer["pool_size"], answer["connections_for_each_worker"], answer["fits"]) == (19, 12, False)
    assert 1400 < answer["rate_that_fits"] < 1420


@pytest.mark.parametrize(
    ("kept", "most", "opened", "fits"),
    [
        (0, 20, 6, True),
        (6, 9, 6, True),
        (7, 9, 7, False),
        (40, 43, 40, True),
        (40, 42, 40, False),
        (7, None, 7, True),
    ],
)
def test_connections_that_threads_keep_count_beside_the_pool(kept, most, opened, fits):
    """Django keeps one for each thread, whatever the guard's slots are."""
    pool = wanted(Demand(60, 0.05))
    fleet = Fleet(1, most, 3, kept)
    assert pool.size == 6
    assert (fleet.open_at_most(pool), fleet.fits(pool)) == (opened, fits)


def test_the_command_counts_the_connections_of_threads():
    """2 x 16 x 2 of 60; the pool alone would fit."""
    words = ("--rate", "60", "--hold", "0.05", "--workers", "2", "--max-connections", "60")
    assert size(*words).returncode == 0
    words += ("--threads", "16", "--aliases", "2")
    run = size(*words)
    assert (run.returncode, run.stderr) == (1, "")
    assert "Django keeps 32 connections in each process, one for each thread and alias." in run.stdout
    assert (
        "It does not fit: 2 x 32 = 64 of 60 connections, 3 reserved. Each process can have 28." in run.stdout
    )
    assert "CONN_MAX_AGE" in run.stdout
    answer = json.loads(size(*words, "--json").stdout)
    assert (answer["kept_by_threads"], answer["connections_of_all_workers"]) == (32, 64)
    assert (answer["fits"], answer["rate_that_fits"]) == (False, None)


def test_no_room_at_all():
    """More processes than connections: no rate fits, and nothing is divided by it."""
    run = size("--rate", "1", "--hold", "0.1", "--workers", "200", "--max-connections", "100")
    assert (run.returncode, "Each process can have 0." in run.stdout) == (1, True)


@pytest.mark.parametrize(
    "words", [["--rate", "0"], ["--rate", "nan"], ["--rate", "-4"], ["--workers", "0"], []]
)
def test_nonsense_is_a_usage_error(words):
    """Exit 2, one line that names the flag."""
    run = size(*words, "--hold", "0.1", *(["--rate", "5"] if "--rate" not in words and words else []))
    assert run.returncode == 2
    assert "rate" in run.stderr or "workers" in run.stderr
    assert "Traceback" not in run.stderr
