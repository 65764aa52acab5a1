"""A server's name that leads to another address, while the server at the old one works on."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
import redis
import redis.asyncio
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import protect
from guardrails._pool import addresses
from guardrails.testing.servers import PostgresServer, ValkeyServer
from support.mysql_server import start_mariadb

NAME = "primary.shop.test"
OLD, NEW = "127.0.0.1", "127.0.0.2"


@pytest.fixture
def name(monkeypatch):
    """A name of our own; ``name["address"]`` is where it leads. Python knows it, libpq does not."""
    real, table = socket.getaddrinfo, {"address": OLD, "asked": 0}

    def getaddrinfo(host, *args, **kwargs):
        if host in {NAME, NAME.encode()}:
            table["asked"] += 1
            host = table["address"]
            if host is None:
                raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses, "_INTERVAL", 0.3)
    monkeypatch.setattr(addresses, "_CONFIRM", 0.05)
    return table


@pytest.fixture(scope="module")
def databases():
    """Two PostgreSQL servers with one port, at two addresses."""
    with (
        PostgresServer.start() as first,
        PostgresServer.start(settings={"listen_addresses": NEW, "port": str(first.port)}),
    ):
        yield first.port


@pytest.fixture(scope="module")
def caches():
    """The same of Valkey."""
    with (
        ValkeyServer.start() as first,
        ValkeyServer.start("--bind", NEW, "--port", str(first.port)),
    ):
        yield first.port


def wait_for(ask, address, seconds=20.0):
    """Asks until the answers come from an address, and only from there."""
    end, row = time.monotonic() + seconds, 0
    while row < 10:
        assert time.monotonic() < end, "the old server still answers"
        row = row + 1 if ask() == address else 0
        time.sleep(0.02)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_engine_follows_its_servers_name(databases, name, driver):
    """Open connections to the old address end within seconds; no statement fails."""

    async def main():
        engine = create_async_engine(
            f"postgresql+{driver}://postgres@{NAME}:{databases}/postgres", pool_size=4, max_overflow=0
        )
        guard = protect(engine)

        async def ask():
            async with engine.connect() as connection:
                return (await connection.execute(text("select host(inet_server_addr())"))).scalar()

        assert set(await asyncio.gather(*[ask() for _ in range(4)])) == {OLD}
        name["address"] = NEW
        end, row = time.monotonic() + 6, 0
        while row < 10:
            row = row + 1 if await ask() == NEW else 0
            await asyncio.sleep(0.02)
            assert time.monotonic() < end, "the old server still answers"
        assert guard.snapshot().failed == 0
        guard.detach()
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["pymysql"])
def test_mariadb_engine_follows_its_servers_name(name, driver):
    with start_mariadb() as first, start_mariadb(f"--bind-address={NEW}", f"--port={first.port}"):
        engine = create_engine(
            f"mysql+{driver}://root@{NAME}:{first.port}/guardrails",
            pool_size=3,
            connect_args={"ssl_disabled": True},
        )
        guard = protect(engine)

        def ask():
            with engine.connect() as connection:
                return connection.execute(text("select @@bind_address")).scalar()

        assert ask() == OLD
        name["address"] = NEW
        wait_for(ask, NEW)
        assert guard.snapshot().failed == 0
        guard.detach()
        engine.dispose()


def test_redis_client_follows_its_servers_name(caches, name):
    client = redis.Redis(host=NAME, port=caches, max_connections=4)
    guard = protect(client)

    def ask():
        return client.config_get("bind")["bind"]

    assert ask() == OLD
    name["address"] = NEW
    wait_for(ask, NEW)
    assert guard.snapshot().failed == 0
    guard.detach()
    client.close()


def test_asyncio_redis_client_follows_its_servers_name(caches, name):
    async def main():
        client = redis.asyncio.Redis(host=NAME, port=caches, max_connections=4)
        guard = protect(client)
        assert (await client.config_get("bind"))["bind"] == OLD
        name["address"] = NEW
        end, row = time.monotonic() + 6, 0
        while row < 10:
            row = row + 1 if (await client.config_get("bind"))["bind"] == NEW else 0
            await asyncio.sleep(0.02)
            assert time.monotonic() < end, "the old server still answers"
        assert guard.snapshot().failed == 0
        guard.detach()
        await client.aclose()

    asyncio.run(main())


def test_resolver_that_fails_says_nothing(caches, name):
    """An outage of the name service leaves the open connections alone."""
    client = redis.Redis(host=NAME, port=caches, max_connections=4)
    guard = protect(client)
    number = client.client_id()
    name["address"] = None
    asked = name["asked"]
    end = time.monotonic() + 5
    while name["asked"] < asked + 3:
        assert client.client_id() == number
        time.sleep(0.02)
        assert time.monotonic() < end
    guard.detach()
    client.close()


def test_address_in_the_url_is_not_looked_up(caches, name):
    client = redis.Redis(host=OLD, port=caches)
    guard = protect(client)
    client.ping()
    watch = guard._attachment.upkeep.watch
    assert not watch.names
    guard.detach()
    client.close()
