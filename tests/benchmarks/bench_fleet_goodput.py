"""What a fleet's budget is worth against a static division of the same connections, under skewed load.

    python tests/benchmarks/bench_fleet_goodput.py [--turn SECONDS] [--rounds N] [--store valkey|sqlite]

Eight worker processes on one PostgreSQL, a budget of 40 connections. One worker at a time has thirty callers,
the others have one each; the turn passes to the next every 20 s. A statement sleeps on the server: the
connections decide, and not this machine's cores. First each worker has a bare pool of five connections, then
all share the budget. It prints the statements that were served in the same time, and their ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from guardrails.testing.servers import PostgresServer, ValkeyServer

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.fleet_processes import Watch, Workers

WORKERS, BUDGET = 8, 40
LOAD = {"CALLERS": 30, "IDLE": 1, "WORK": 0.25}


def served(database, url, turn, seconds):
    """The statements served in so many seconds, those refused, and the most connections at once."""
    with Watch(database("")) as watch, contextlib.ExitStack() as stack:
        workers = Workers(database(), url, WORKERS, BUDGET, TURN=turn, **LOAD)
        stack.callback(workers.end)
        workers.start_all()
        watch.until(lambda seen: len(seen.now) == WORKERS, 120)
        time.sleep(5)  # a new fleet learns for three seconds what there is
        before = workers.total(0), workers.total(1)
        time.sleep(seconds)
        after = workers.total(0), workers.total(1)
        if workers.total(2):
            raise SystemExit(f"calls failed: {workers.lines}")
    return after[0] - before[0], after[1] - before[1], watch.most


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turn", type=float, default=20.0, help="seconds of a worker's turn (20)")
    parser.add_argument("--rounds", type=float, default=1.0, help="times that each worker has its turn (1)")
    parser.add_argument("--store", choices=["valkey", "sqlite"], default="valkey")
    given = parser.parse_args()
    seconds = given.turn * WORKERS * given.rounds
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(PostgresServer.start(max_connections=60))
        if given.store == "valkey":
            url = stack.enter_context(ValkeyServer.start()).url()
        else:
            url = f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/fleet.db"
        static, _, most_static = served(server.url, "", given.turn, seconds)
        fleet, refused, most_fleet = served(server.url, url, given.turn, seconds)
    print(f"{WORKERS} workers, {BUDGET} connections, turns of {given.turn:g} s, {seconds:g} s each:")
    print(f"  static, {BUDGET // WORKERS} each: {static:6} statements, at most {most_static} connections")
    print(
        f"  fleet ({given.store}):  {fleet:6} statements, at most {most_fleet} connections, {refused} refused"
    )
    print(f"  ratio: {fleet / max(1, static):.2f}")


if __name__ == "__main__":
    main()
