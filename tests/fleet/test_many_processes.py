"""Six processes, one PostgreSQL, one budget: what the server sees while they die, stop, end and start."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time

import psycopg
import pytest

from guardrails.testing.servers import PostgresServer, ValkeyServer
from support.paths import PROCESSES

WORKERS = 6
BUDGET = 40


class Workers:
    """The processes, each with the last line that it has printed."""

    def __init__(self, database, url):
        self.database, self.url = database, url
        self.running, self.lines, self.all = {}, {}, []

    def start(self, number):
        words = [self.database, self.url, BUDGET, number, WORKERS]
        command = [sys.executable, PROCESSES / "fleet_worker.py", *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.running[number] = process
        self.all.append(process)
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process):
        for line in process.stdout:
            self.lines[process.pid] = line.split(None, 3)

    def end(self):
        for process in self.all:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.all:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
            process.stdout.close()

    def total(self, which):
        return sum(int(line[which]) for line in list(self.lines.values()))


def open_connections(connection):
    query = "select count(*) from pg_stat_activity where application_name = 'fleet'"
    return connection.execute(query).fetchone()[0]


@pytest.fixture(params=["valkey", "sqlite"])
def fleet_url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/fleet.db"
        return
    with ValkeyServer.start() as server:
        yield server.url()


@pytest.mark.slow
@pytest.mark.first
def test_the_server_never_sees_more_connections_than_the_budget(fleet_url):
    """Killed, stopped, ended and restarted at random for twenty seconds, sampled every 20 ms."""
    draw, counts = random.Random(7), []
    with (
        PostgresServer.start(max_connections=50) as server,
        psycopg.connect(server.url(""), autocommit=True) as watch,
    ):
        workers = Workers(server.url(), fleet_url)
        with contextlib.ExitStack() as stack:
            stack.callback(workers.end)
            for number in range(WORKERS):
                workers.start(number)
            _until(lambda: open_connections(watch) >= WORKERS, watch, counts, 60)
            served, until = 0, time.monotonic() + 20
            next_act = time.monotonic() + 3
            while time.monotonic() < until:
                counts.append(open_connections(watch))
                if time.monotonic() >= next_act:
                    next_act = time.monotonic() + draw.uniform(0.5, 2)
                    number = draw.randrange(WORKERS)
                    _act(draw.choice(["kill", "end", "stop"]), workers, number, draw)
                time.sleep(0.02)
            served = workers.total(0)
    assert max(counts) <= BUDGET
    assert max(counts) > BUDGET // 2, "the budget was used"
    assert workers.total(2) == 0, workers.lines
    assert served > 200


def _act(what, workers, number, draw):
    process = workers.running[number]
    if what == "stop":
        process.send_signal(signal.SIGSTOP)
        threading.Timer(draw.uniform(0.5, 2.5), process.send_signal, [signal.SIGCONT]).start()
        return
    process.send_signal(signal.SIGKILL if what == "kill" else signal.SIGTERM)
    workers.start(number)


def _until(true, watch, counts, seconds):
    end = time.monotonic() + seconds
    while not true():
        counts.append(open_connections(watch))
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_store_that_is_frozen_flushed_and_killed_costs_no_call_and_no_connection_too_many():
    with (
        ValkeyServer.start() as store,
        PostgresServer.start(max_connections=50) as server,
        psycopg.connect(server.url(""), autocommit=True) as watch,
    ):
        workers, counts = Workers(server.url(), store.url()), []
        with contextlib.ExitStack() as stack:
            stack.callback(workers.end)
            for number in range(WORKERS):
                workers.start(number)
            _until(lambda: open_connections(watch) >= WORKERS, watch, counts, 60)
            _watch(6, watch, counts)
            store.freeze()
            _watch(8, watch, counts)
            store.thaw()
            _watch(3, watch, counts)
            store.kill()
            before = workers.total(0)
            _watch(5, watch, counts)
            assert workers.total(0) > before, "the service goes on without the store"
            store.restart()
            _watch(8, watch, counts)
    assert max(counts) <= BUDGET
    assert workers.total(2) == 0, workers.lines


def _watch(seconds, watch, counts):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        counts.append(open_connections(watch))
        time.sleep(0.02)
