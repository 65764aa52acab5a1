"""The real servers of a run, and the clients that tests drive them with."""

from __future__ import annotations

import pytest

from guardrails.testing.proxy import FaultProxy
from guardrails.testing.servers import PostgresServer, ValkeyServer
from support import redis_lab
from support.mysql_server import start_mariadb
from support.sql_lab import MariaDB, drivers, lab_with


@pytest.fixture(scope="session")
def postgres():
    """One PostgreSQL for the whole run."""
    with PostgresServer.start(max_connections=100, settings={"max_prepared_transactions": "20"}) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb():
    """One MariaDB for the whole run, with a user of the tests' own; a visible skip without the program.

    MySQL instead, if the environment names it.
    """
    with start_mariadb("--max-connections=100") as server:
        with MariaDB(server).connect() as connection:
            MariaDB.run(connection, "create user lab@'127.0.0.1'")
            MariaDB.run(connection, "grant all on guardrails.* to lab@'127.0.0.1'")
        yield server


lab = lab_with(drivers())
maria_lab = lab_with(drivers("mariadb"))


@pytest.fixture(scope="session")
def valkey():
    """One Valkey for the whole run."""
    with ValkeyServer.start("--enable-debug-command", "yes") as server:
        yield server


@pytest.fixture
def parser(request, monkeypatch):
    """What redis-py reads replies with: what it takes by itself, or what a test asks for."""
    if hasattr(request, "param"):
        redis_lab.use_parser(request.param, monkeypatch)


@pytest.fixture(params=[redis_lab.SyncLab, redis_lab.AsyncLab], ids=["sync", "async"])
def cache(request, valkey, parser):
    """A place for a Redis client of each flavour; the client and what it holds are gone afterwards."""
    with request.param(valkey.port) as lab:
        yield lab
        if lab.guard is not None and lab.client.connection is None:
            # The upkeep may be pinging one of them.
            lab.until(lambda: lab.out() == 0, "every connection was given back")


patient_releases = redis_lab.patient_releases


@pytest.fixture
def wire(cache):
    """A proxy between the client and its server that breaks the wire on demand."""
    with FaultProxy(cache.port) as proxy:
        cache.port = proxy.port
        yield proxy
        proxy.heal()
