"""One process of a Django site in a fleet: DATABASE FLEET_URL CONNECTIONS NUMBER OF WORKERS.

DATABASE is the entry of DATABASES in JSON, without its guard. Its load moves: each worker has its turn with
many threads, and a few at other times. Each thread makes one request after another and keeps its connection
in between. It prints the requests that succeeded, were refused and failed, each half second. The environment
may set TURN (seconds; 0 is a turn without end for all), CALLERS, IDLE (threads without a turn) and WORK
(seconds of a statement).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time

import django
import pymysql
from django.conf import settings
from django.core.signals import request_finished, request_started
from django.db import connection, transaction

from guardrails import Guard, RejectedError
from guardrails.fleet import Fleet

TURN = float(os.environ.get("TURN", "2"))
CALLERS = int(os.environ.get("CALLERS", "25"))
IDLE = int(os.environ.get("IDLE", "2"))
WORK = float(os.environ.get("WORK", "0.05"))


def configure(database, guard):
    """Settings of a site with one database."""
    # The connection over which a guard asks who holds a lock is in no budget.
    database["OPTIONS"] |= {"guard": guard, "ask_server": False}
    if database["ENGINE"].endswith("mysql"):
        pymysql.install_as_MySQLdb()
    settings.configure(USE_TZ=True, DATABASES={"default": database})
    django.setup(set_prefix=False)


class Site:
    """The threads of one worker; see ``fleet_worker.Load``."""

    def __init__(self, number, workers, sleep):
        self._number, self._workers, self._sleep = number, workers, sleep
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
            self._request()
            if not has_turn:
                time.sleep(0.05)
        connection.close()

    def _request(self):
        request_started.send(self)
        try:
            if random.random() < 0.5:
                with transaction.atomic(), connection.cursor() as cursor:
                    cursor.execute(self._sleep)
            else:
                with connection.cursor() as cursor:
                    cursor.execute(self._sleep)
            self.counts["served"] += 1
        except RejectedError:
            self.counts["refused"] += 1
            time.sleep(0.01)
        except Exception as error:
            self.counts["failed"] += 1
            self.errors.add(f"{type(error).__name__}: {error}"[:200])
        finally:
            request_finished.send(self)


def main():
    database, url, connections, number, workers = sys.argv[1:]
    fleet = Fleet(url, name="shop")
    guard = Guard(
        f"w{number}",
        max_concurrent_calls=int(connections),
        max_wait_duration=0.1,
        timeout=60,  # a stop is no failure
        fleet=fleet.budget("db", connections=int(connections)),
    )
    entry = json.loads(database)
    is_mysql = entry["ENGINE"].endswith("mysql")
    if not is_mysql:
        entry["OPTIONS"]["application_name"] = f"fleet-{number}"
    configure(entry, guard)
    site = Site(
        int(number), int(workers), f"select sleep({WORK})" if is_mysql else f"select pg_sleep({WORK})"
    )
    for thread in site.threads:
        thread.start()
    signal.signal(signal.SIGTERM, lambda *_: site.stopped.set())
    while not site.stopped.wait(0.5):
        print(*site.counts.values(), *site.errors, flush=True)
    for thread in site.threads:
        thread.join(10)
    print(*site.counts.values(), *site.errors, flush=True)


if __name__ == "__main__":
    main()
