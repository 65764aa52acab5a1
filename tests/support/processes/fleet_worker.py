"""One process of a fleet: DATABASE_URL FLEET_URL CONNECTIONS NUMBER OF WORKERS [WORKER_ID].

Its load moves: each worker has its turn with many callers, and a few at other times. It prints the calls that
succeeded, were refused and failed, each half second. An empty FLEET_URL is a bare pool with its part of the
connections. The environment may set TURN (seconds; 0 is a turn without end for all), CALLERS, IDLE (callers
without a turn) and WORK (seconds of a statement).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from sqlalchemy import create_engine, text

from guardrails import RejectedError, protect
from guardrails.fleet import Fleet

TURN = float(os.environ.get("TURN", "2"))
CALLERS = int(os.environ.get("CALLERS", "25"))
IDLE = int(os.environ.get("IDLE", "2"))
WORK = float(os.environ.get("WORK", "0.05"))


class Load:
    """The callers of one worker.

    Attributes:
        counts: Calls that were served, refused and that failed.
        errors: The texts of errors.
        stopped: Set to end the callers.
    """

    def __init__(self, engine, number, workers):
        self._engine, self._number, self._workers = engine, number, workers
        self.counts = {"served": 0, "refused": 0, "failed": 0}
        self.errors = set()
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(CALLERS)]

    def _run(self, index):
        while not self.stopped.is_set():
            has_turn = not TURN or int(time.time() / TURN) % self._workers == self._number
            if not has_turn and index >= IDLE:
                time.sleep(0.1)
                continue
            self._call()
            if not has_turn:
                time.sleep(0.05)

    def _work(self):
        with self._engine.connect() as connection:
            connection.execute(text(f"select pg_sleep({WORK})"))

    def _call(self):
        try:
            self._work()
            self.counts["served"] += 1
        except RejectedError:
            self.counts["refused"] += 1
            time.sleep(0.01)
        except Exception as error:
            self.counts["failed"] += 1
            self.errors.add(f"{type(error).__name__}: {error}"[:200])


def main():
    database, url, connections, number, workers, *worker_id = sys.argv[1:]
    size = int(connections) if url else int(connections) // int(workers)
    name = {"application_name": f"fleet-{number}"}
    engine = create_engine(database, pool_size=size, max_overflow=0, connect_args=name)
    if url:
        fleet = Fleet(url, name="shop", worker_id=worker_id[0] if worker_id else None)
        budget = fleet.budget("db", connections=int(connections))
        protect(
            engine, name=f"w{number}", fleet=budget, max_wait_duration=0.1, timeout=60
        )  # a stop is no failure
    load = Load(engine, int(number), int(workers))
    for thread in load.threads:
        thread.start()
    signal.signal(signal.SIGTERM, lambda *_: load.stopped.set())
    while not load.stopped.wait(0.5):
        print(*load.counts.values(), *load.errors, flush=True)
    for thread in load.threads:
        thread.join(10)
    engine.dispose()
    print(*load.counts.values(), *load.errors, flush=True)


if __name__ == "__main__":
    main()
