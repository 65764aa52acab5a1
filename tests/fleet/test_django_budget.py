"""Django's database under a fleet's budget: the guard in the settings has a part of it."""

from __future__ import annotations

import threading

import psycopg
import pytest
from django.db import connections

from guardrails import BulkheadFullError, ConfigurationError, Guard
from guardrails.fleet import Fleet
from guardrails.integrations.sqlalchemy import pool_status
from support import django_lab
from support.polling import wait_until

QUERY = "select count(*) from pg_stat_activity where application_name = 'django-fleet'"


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
    yield fleet
    fleet.close()


def entry(postgres, guard, **more):
    return django_lab.database(postgres, {"guard": guard, "application_name": "django-fleet"} | more)


def test_threads_of_two_workers_share_one_budget(postgres, fleet, tmp_path):
    """The second worker has a guard of its own, as another process has; the server has six at most."""
    other = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
    guards = [
        Guard(
            f"d{number}",
            max_concurrent_calls=6,
            max_wait_duration=0.1,
            fleet=each.budget("orders-db", connections=6),
        )
        for number, each in enumerate((fleet, other))
    ]
    over = threading.Event()

    def work(alias):
        while not over.is_set():
            try:
                with connections[alias].cursor() as cursor:
                    cursor.execute("select pg_sleep(0.05)")
            except BulkheadFullError:
                over.wait(0.01)
            finally:
                connections[alias].close()

    with (
        psycopg.connect(postgres.url(""), autocommit=True) as watch,
        django_lab.known("first", entry(postgres, guards[0])),
        django_lab.known("second", entry(postgres, guards[1])),
    ):
        threads = [threading.Thread(target=work, args=("first",)) for _ in range(8)]
        threads.append(threading.Thread(target=work, args=("second",)))
        for thread in threads:
            thread.start()
        most = 0

        def is_shared():
            nonlocal most
            most = max(most, watch.execute(QUERY).fetchone()[0])
            return most >= 5 and guards[0].snapshot().max_concurrent_calls >= 4

        try:
            wait_until(is_shared)
            lease = guards[0].snapshot().pool.lease
        finally:
            over.set()
            for thread in threads:
                thread.join(20)
    assert most <= 6
    assert (lease.budget, lease.connections, lease.in_contact) == ("orders-db", 6, True)
    other.close()


@pytest.mark.parametrize(
    ("options", "more", "named"),
    [
        ({}, {"CONN_MAX_AGE": 60}, "CONN_MAX_AGE = 60 keeps"),
        ({}, {"CONN_MAX_AGE": None}, "CONN_MAX_AGE = None keeps"),
        ({"pool": {"min_size": 1, "max_size": 2}}, {}, r"OPTIONS\['pool'\] keeps"),
    ],
)
def test_connections_that_are_kept_without_a_slot_are_refused(postgres, fleet, options, more, named):
    guard = Guard("kept", max_concurrent_calls=2, fleet=fleet.budget("orders-db", connections=6))
    database = django_lab.database(postgres, {"guard": guard} | options, **more)
    with (
        pytest.raises(ConfigurationError, match=rf"DATABASES\['kept'\]: its guard has a part.*{named}"),
        django_lab.configured("kept", database),
    ):
        pass
    without = Guard("kept", max_concurrent_calls=2, fleet=fleet.verdict("orders-db"))
    database = django_lab.database(postgres, {"guard": without} | options, **more)
    with django_lab.configured("kept", database) as connection, connection.cursor() as cursor:
        cursor.execute("select 1")
        assert pool_status("kept").in_use == 1
