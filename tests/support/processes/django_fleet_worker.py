"""One process of a Django site in a fleet: DATABASE FLEET_URL CONNECTIONS NUMBER OF WORKERS.

DATABASE is the entry of DATABASES in JSON, without its guard. Its load moves: each worker has its turn with
many threads, and a few at other times. Each thread makes one request after another and keeps its connection
in between. It prints the requests that succeeded, were refused and failed, each half second. The environment
may set TURN (seconds; 0 is a turn without end for all), CALLERS, IDLE (threads without a turn) and WORK
(seconds of a statement).
"""

from __future__ import annotations

import json
import random
import signal
import sys

import django
import pymysql
from django.conf import settings
from django.core.signals import request_finished, request_started
from django.db import connection, transaction
from fleet_worker import WORK, Load

from guardrails import Guard
from guardrails.fleet import Fleet


def configure(database, guard):
    """Settings of a site with one database."""
    # The connection over which a guard asks who holds a lock is in no budget.
    database["OPTIONS"] |= {"guard": guard, "ask_server": False}
    if database["ENGINE"].endswith("mysql"):
        pymysql.install_as_MySQLdb()
    settings.configure(USE_TZ=True, DATABASES={"default": database})
    django.setup(set_prefix=False)


class Site(Load):
    """The threads of one worker, each with a connection that it keeps between requests."""

    def __init__(self, number, workers, sleep):
        super().__init__(None, number, workers)
        self._sleep = sleep

    def _run(self, index):
        super()._run(index)
        connection.close()

    def _call(self):
        request_started.send(self)
        try:
            super()._call()
        finally:
            request_finished.send(self)

    def _work(self):
        if random.random() < 0.5:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(self._sleep)
        else:
            with connection.cursor() as cursor:
                cursor.execute(self._sleep)


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
