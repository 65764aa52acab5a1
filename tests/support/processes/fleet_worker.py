"""One process of a fleet: DATABASE_URL FLEET_URL CONNECTIONS NUMBER OF WORKERS [WORKER_ID].

Its load moves: each worker has its turn of two seconds with many callers, and a few at other times. It prints
the calls that succeeded, were refused and failed, each half second.
"""

from __future__ import annotations

import signal
import sys
import threading
import time

from sqlalchemy import create_engine, text

from guardrails import RejectedError, protect
from guardrails.fleet import Fleet


def main():
    database, url, connections, number, workers, *worker_id = sys.argv[1:]
    engine = create_engine(
        database, pool_size=int(connections), max_overflow=0, connect_args={"application_name": "fleet"}
    )
    fleet = Fleet(url, name="shop", worker_id=worker_id[0] if worker_id else None)
    budget = fleet.budget("db", connections=int(connections))
    guard = protect(engine, name=f"w{number}", fleet=budget, max_wait_duration=0.1)
    counts = {"served": 0, "refused": 0, "failed": 0}
    errors = set()
    stopped = threading.Event()

    def call(index):
        while not stopped.is_set():
            has_turn = int(time.time() / 2) % int(workers) == int(number)
            if not has_turn and index >= 2:
                time.sleep(0.02)
                continue
            try:
                with engine.connect() as connection:
                    connection.execute(text("select pg_sleep(0.05)"))
                counts["served"] += 1
            except RejectedError:
                counts["refused"] += 1
                time.sleep(0.01)
            except Exception as error:
                counts["failed"] += 1
                errors.add(str(error)[:200])
            if not has_turn:
                time.sleep(0.05)

    threads = [threading.Thread(target=call, args=(index,), daemon=True) for index in range(25)]
    for thread in threads:
        thread.start()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    while not stopped.wait(0.5):
        print(counts["served"], counts["refused"], counts["failed"], *errors, flush=True)
    for thread in threads:
        thread.join(10)
    engine.dispose()
    print(
        counts["served"],
        counts["refused"],
        counts["failed"],
        guard.snapshot().max_concurrent_calls,
        flush=True,
    )


if __name__ == "__main__":
    main()
