"""The private servers whose binaries come from the machine: skipped visibly where there are none."""

from __future__ import annotations

import socket

import psutil
import psycopg
import pymysql
import pytest

from guardrails.testing import mariadb, pgbouncer, servers
from guardrails.testing.mariadb import MariaDBServer
from guardrails.testing.pgbouncer import PgBouncer
from guardrails.testing.servers import PostgresServer, ServerError, free_port

needs_mariadb = pytest.mark.skipif(not MariaDBServer.installed(), reason="mariadbd is not installed")
needs_pgbouncer = pytest.mark.skipif(not PgBouncer.installed(), reason="pgbouncer is not installed")


def ask(server: MariaDBServer, sql: str, **options):
    connection = pymysql.connect(host="127.0.0.1", port=server.port, user="root", **options)
    with connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


@pytest.fixture(scope="module")
def maria():
    with MariaDBServer.start("--max-connections=20") as server:
        yield server


@needs_mariadb
def test_mariadb_answers_and_is_not_root(maria):
    """A database of its own, on loopback, with the options it was given."""
    assert ask(maria, "select database(), @@max_connections", database="guardrails") == (("guardrails", 20),)
    assert psutil.Process(maria.pids()[0]).uids().effective != 0
    assert maria.url("asyncmy") == f"mysql+asyncmy://root@127.0.0.1:{maria.port}/guardrails"


@needs_mariadb
def test_frozen_mariadb_keeps_connections_and_does_not_answer(maria):
    """SIGSTOP: the port accepts connections, and no greeting comes."""
    maria.freeze()
    try:
        with socket.create_connection(("127.0.0.1", maria.port), 1.0) as newcomer:
            newcomer.settimeout(0.2)
            with pytest.raises(TimeoutError):
                newcomer.recv(1)  # a MySQL server speaks first
    finally:
        maria.thaw()
    assert ask(maria, "select 1") == ((1,),)


@needs_mariadb
def test_killed_mariadb_restarts_with_its_data_on_its_port():
    """A crash costs no committed row, and `stop` leaves neither process nor directory."""
    with MariaDBServer.start() as server:
        ask(server, "create table kept (n int)", database="guardrails")
        port, home = server.port, server.home
        server.kill()
        assert server.pids() == []
        server.restart()
        assert server.port == port
        assert ask(server, "select count(*) from guardrails.kept") == ((0,),)
    assert server.pids() == []
    assert not home.exists()


@pytest.mark.slow
@needs_mariadb
def test_mariadb_tries_another_port_if_its_port_is_taken(monkeypatch):
    """The port is free when chosen and taken when bound; the next one serves."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        choices = iter([taken, free_port()])
        monkeypatch.setattr(servers, "free_port", lambda: next(choices))
        with MariaDBServer.start() as server:
            assert server.port != taken
            assert ask(server, "select 1") == ((1,),)


@pytest.mark.slow
@needs_mariadb
def test_a_wrong_option_of_mariadb_fails_with_its_log():
    """The message says what the server said."""
    with pytest.raises(ServerError, match=r"MariaDB ended with code .*no-such-option"):
        MariaDBServer.start("--no-such-option=1")


@needs_pgbouncer
def test_pgbouncer_pools_transactions_over_few_connections():
    """Ten clients, five sessions behind them; frozen it keeps its clients waiting."""
    with PostgresServer.start() as postgres, PgBouncer.start(postgres) as bouncer:
        clients = [psycopg.connect(bouncer.url(""), autocommit=True) for _ in range(10)]
        try:
            sessions = {client.execute("select pg_backend_pid()").fetchone() for client in clients}
            assert 1 <= len(sessions) <= 5
            assert psutil.Process(bouncer.pids()[0]).uids().effective != 0
            bouncer.freeze()
            bouncer.thaw()
            assert clients[0].execute("select 1").fetchone() == (1,)
        finally:
            for client in clients:
                client.close()


@needs_pgbouncer
def test_a_wrong_setting_of_pgbouncer_fails_with_its_log():
    """The message says what pgbouncer said."""
    with PostgresServer.start() as postgres, pytest.raises(ServerError, match=r"pgbouncer ended with code"):
        PgBouncer.start(postgres, settings={"pool_mode": "sometimes"})


def test_missing_programs_are_named(monkeypatch):
    """Without the binaries the error says which package has them."""
    for module in (mariadb, pgbouncer):
        monkeypatch.setattr(module, "program", lambda name: None)
    with pytest.raises(ServerError, match="mariadb-server"):
        MariaDBServer.start()
    with pytest.raises(ServerError, match="pgbouncer"):
        PgBouncer.start(postgres=None)
    assert not MariaDBServer.installed()
    assert not PgBouncer.installed()
