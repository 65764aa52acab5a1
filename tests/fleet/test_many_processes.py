"""Many processes, one PostgreSQL, one budget: what the server sees while they die, stop, end, start and join.

``GUARDRAILS_FLEET_SECONDS`` sets how long (60); the last long run is in docs/internals/proof.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from functools import partial

import pytest
from psycopg.conninfo import conninfo_to_dict

from guardrails.fleet._records import FORGET_AFTER
from guardrails.testing.servers import PostgresServer, ValkeyServer
from support import django_lab
from support.fleet_processes import Watch, Workers

SECONDS = float(os.environ.get("GUARDRAILS_FLEET_SECONDS", "60"))
BUDGET = 40
BUSY = 2.0
"""Seconds that a busy machine may take beyond what is promised."""


@contextlib.contextmanager
def store(kind, tmp_path):
    """The URL of a store."""
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path}/fleet.db"
        return
    with ValkeyServer.start() as server:
        yield server.url()


def django_entry(server, site):
    """The entry of DATABASES, as far as it can be written as JSON."""
    told = conninfo_to_dict(server.url(""))
    address = {django: told[word] for word, django in django_lab.WORDS.items()}
    return {"ENGINE": django_lab.ENGINE, "OPTIONS": {}, **address, **site}


@contextlib.contextmanager
def fleet(kind, count, tmp_path, site=None, **load):
    """So many processes on a server with fifty connections, and who watches them.

    Each is a program with a pool of SQLAlchemy's, or a Django site whose database has these entries.
    """
    with (
        store(kind, tmp_path) as url,
        PostgresServer.start(max_connections=50) as server,
        Watch(server.url("")) as watch,
        contextlib.ExitStack() as stack,
    ):
        database = server.url() if site is None else json.dumps(django_entry(server, site))
        if site is not None:
            load["program"] = "django_fleet_worker.py"
        workers = Workers(database, url, count, BUDGET, **load)
        stack.callback(workers.end)
        workers.start_all()
        watch.until(lambda seen: len(seen.now) == count, 120)
        yield workers, watch


class Chaos:
    """Kills, ends, stops and starts workers at random; one that was killed or ended is started later."""

    def __init__(self, workers, watch, draw):
        self._workers, self._watch, self._draw = workers, watch, draw
        self._due = []  # what is to be done at a time
        self._away = set()
        self.acts = dict.fromkeys(("kill", "end", "stop", "freeze"), 0)

    def step(self, now):
        for each in [each for each in self._due if each[0] <= now]:
            self._due.remove(each)
            each[1](each[2], now)

    def act(self, now):
        here = sorted(set(range(self._workers.count)) - self._away)
        # One that is stopped for longer than its lease is kept may not have so many that the server is full.
        few = [number for number in here if self._watch.now[number] <= 3]
        what = self._draw.choice(["kill", "end", "stop"] + (["freeze"] if few else []))
        if what == "freeze" and self._watch.excused:
            what = "stop"
        number = self._draw.choice(few if what == "freeze" else here)
        self.acts[what] += 1
        self._away.add(number)
        if what in {"kill", "end"}:
            self._workers.signal(number, signal.SIGKILL if what == "kill" else signal.SIGTERM)
            self._due.append((now + self._draw.uniform(0, 4), self._start, number))
            return
        self._workers.signal(number, signal.SIGSTOP)
        if what == "freeze":
            self._due.append((now + FORGET_AFTER / 1000 - 1, self._excuse, number))
            self._due.append((now + self._draw.uniform(16, 20), self._go_on, number))
        else:
            self._due.append((now + self._draw.uniform(0.5, 10), self._go_on, number))

    def _start(self, number, _):
        self._workers.start(number)
        self._away.discard(number)

    def _excuse(self, number, _):
        self._watch.excused.add(number)

    def _go_on(self, number, now):
        self._workers.signal(number, signal.SIGCONT)
        self._due.append((now + 3, self._back, number))

    def _back(self, number, _):
        self._watch.excused.discard(number)
        self._away.discard(number)


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.parametrize(("kind", "count"), [("valkey", 16), ("sqlite", 8)])
def test_the_server_never_sees_more_connections_than_the_budget(kind, count, tmp_path):
    """Each worker has its turn of six seconds. One that is stopped for over 15 s does not count."""
    draw = random.Random(7)
    with fleet(kind, count, tmp_path, TURN=6, CALLERS=40) as (workers, watch):
        chaos, began = Chaos(workers, watch, draw), time.monotonic()
        next_act = began + 3
        while (now := time.monotonic()) < began + SECONDS:
            chaos.step(now)
            if now >= next_act:
                chaos.act(now)
                next_act = now + draw.uniform(1, 4)
            time.sleep(0.02)
        served, refused, failed = map(workers.total, range(3))
        print(
            f"{kind}, {count} workers, {SECONDS:g} s: {chaos.acts}; {watch.samples} samples, at most "
            f"{watch.most} connections of {BUDGET} ({watch.peak} with those that were frozen); "
            f"{served} served, {refused} refused, {failed} failed"
        )
    assert watch.most <= BUDGET
    assert watch.most > BUDGET // 2, "the budget was used"
    assert failed == 0, workers.lines
    assert served > 10 * SECONDS


SITES = {
    "CONN_MAX_AGE None": {"CONN_MAX_AGE": None},
    "pool": {"OPTIONS": {"pool": {"min_size": 0, "max_size": BUDGET}}},
}


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.parametrize("keeps", SITES)
def test_django_sites_that_keep_connections_stay_within_the_budget(keeps, tmp_path):
    """Connections that wait for the next request count; workers are killed, stopped and ended meanwhile."""
    seconds = SECONDS / 3
    with fleet("sqlite", 4, tmp_path, SITES[keeps], TURN=3, CALLERS=30) as (workers, watch):
        steps = [
            (0.2, partial(workers.signal, 0, signal.SIGKILL)),
            (0.35, partial(workers.start, 0)),
            (0.5, partial(workers.signal, 1, signal.SIGSTOP)),
            (0.6, partial(workers.signal, 1, signal.SIGCONT)),
            (0.7, partial(workers.signal, 2, signal.SIGTERM)),
            (0.8, partial(workers.start, 2)),
            (1.0, bool),
        ]
        began = time.monotonic()
        for share, act in steps:
            time.sleep(max(0.0, began + share * seconds - time.monotonic()))
            act()
        served, refused, failed = map(workers.total, range(3))
        print(
            f"{keeps}, {seconds:g} s: {watch.samples} samples, at most {watch.most} connections of {BUDGET}; "
            f"{served} served, {refused} refused, {failed} failed"
        )
    assert watch.most <= BUDGET
    assert watch.most > BUDGET // 4, "the budget was used"
    assert failed == 0, workers.lines
    assert served > 10 * seconds


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["valkey", "sqlite"])
def test_the_connections_of_a_worker_that_is_gone_are_used_again(kind, tmp_path):
    """Every worker wants more than it gets: two seconds after a goodbye, 15 and one after a kill."""
    with fleet(kind, 6, tmp_path, TURN=0, CALLERS=15, WORK=0.2) as (workers, watch):
        watch.until(lambda seen: seen.sum == BUDGET, 60)
        workers.signal(0, signal.SIGTERM)
        watch.until(lambda seen: not seen.now[0], 10)
        after_goodbye = watch.until(lambda seen: seen.sum == BUDGET, 30)
        workers.signal(1, signal.SIGKILL)
        watch.until(lambda seen: not seen.now[1], 10)
        after_kill = watch.until(lambda seen: seen.sum == BUDGET, 60)
        failed = workers.total(2)
    print(f"{kind}: all in use again {after_goodbye:.1f} s after a goodbye, {after_kill:.1f} s after a kill")
    assert after_goodbye < 2 + BUSY
    assert after_kill < FORGET_AFTER / 1000 + 1 + BUSY
    assert watch.most <= BUDGET
    assert failed == 0, workers.lines


@pytest.mark.slow
def test_a_store_that_is_frozen_flushed_and_killed_costs_no_call_and_no_connection_too_many():
    with (
        ValkeyServer.start() as store,
        PostgresServer.start(max_connections=50) as server,
        Watch(server.url("")) as watch,
        contextlib.ExitStack() as stack,
    ):
        workers = Workers(server.url(), store.url(), 6, BUDGET)
        stack.callback(workers.end)
        workers.start_all()
        watch.until(lambda seen: seen.sum >= 6, 60)
        time.sleep(6)
        store.freeze()
        time.sleep(8)
        store.thaw()
        time.sleep(3)
        store.kill()
        before = workers.total(0)
        time.sleep(5)
        assert workers.total(0) > before, "the service goes on without the store"
        store.restart()
        time.sleep(8)
        assert workers.total(2) == 0, workers.lines
    assert watch.most <= BUDGET
