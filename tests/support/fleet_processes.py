"""Processes of a fleet on one PostgreSQL, and what the server sees of them."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psycopg

from support.paths import PROCESSES

QUERY = "select application_name from pg_stat_activity where application_name like 'fleet-%'"


class Workers:
    """The processes, each with the last line that it has printed.

    Args:
        database: The URL of PostgreSQL; for another program, what it takes instead.
        url: The URL of the fleet's store.
        count: Number of workers.
        budget: The budget of connections.
        program: The program of each.
        load: The environment of the processes; see ``fleet_worker.py``.
    """

    def __init__(self, database, url, count, budget, *, program="fleet_worker.py", **load):
        self.program = program
        self.words = [database, url, budget]
        self.count = count
        self.load = {key: str(value) for key, value in load.items()}
        self.running, self.lines, self.all = {}, {}, []

    def start(self, number):
        words = [*self.words, number, self.count]
        command = [sys.executable, PROCESSES / self.program, *map(str, words)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **self.load},
        )
        self.running[number] = process
        self.all.append(process)
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def start_all(self):
        for number in range(self.count):
            self.start(number)

    def _read(self, process):
        for line in process.stdout:
            self.lines[process.pid] = line.split(None, 3)

    def signal(self, number, which):
        self.running[number].send_signal(which)

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
        """The sum of a figure: 0 is served, 1 refused, 2 failed."""
        return sum(int(line[which]) for line in list(self.lines.values()))


class Watch:
    """Counts the connections of each worker on the server, every 20 ms, in a thread.

    Attributes:
        now: The counts by worker.
        most: The largest sum, without those that `excused` names.
        excused: Workers whose connections are beyond what is promised.
    """

    def __init__(self, url):
        self._connection = psycopg.connect(url, autocommit=True)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.now, self.most, self.samples = collections.Counter(), 0, 0
        self.peak, self.excused = 0, set()

    @property
    def sum(self):
        return sum(self.now.values())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(30)
        self._connection.close()

    def _run(self):
        while not self._over.wait(0.02):
            rows = self._connection.execute(QUERY).fetchall()
            excused = set(self.excused)
            self.now = collections.Counter(int(name.removeprefix("fleet-")) for (name,) in rows)
            self.samples += 1
            self.peak = max(self.peak, self.sum)
            self.most = max(self.most, sum(n for worker, n in self.now.items() if worker not in excused))

    def until(self, true, seconds):
        """Waits until the counts are so; returns the seconds that it took."""
        began = time.monotonic()
        while not true(SimpleNamespace(sum=self.sum, now=self.now)):
            assert time.monotonic() - began < seconds, f"not within {seconds} s: {self.sum} {self.now}"
            time.sleep(0.01)
        return time.monotonic() - began
