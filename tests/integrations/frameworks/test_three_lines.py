"""The README's three lines alone: with one table locked, no request for another table is refused."""

from __future__ import annotations

import asyncio
from collections import Counter

import psycopg
import pytest

from support.apps.three_lines import TABLES
from support.polling import wait_until
from support.server_process import Server

UVICORN = "uvicorn --factory three_lines:{app} --host 127.0.0.1 --port {{port}} --log-level warning"
GUNICORN = "gunicorn three_lines:{app}() --worker-class gthread --threads 40 --bind 127.0.0.1:{{port}}"
APPS = {
    "fastapi_async": UVICORN,
    "fastapi_threads": UVICORN,
    "starlette": UVICORN,
    "flask": GUNICORN,
    "django_wsgi": GUNICORN,
    "django_asgi": UVICORN + " --lifespan off",
}

LOCKED = 8.0
"""Seconds for which the table is locked: longer than a statement may take."""

RATES = {"orders": 15, "items": 8}
"""Requests a second."""


@pytest.fixture
def tables(postgres):
    """A connection to a database with both tables."""
    with psycopg.connect(postgres.url(""), autocommit=True) as connection:
        for table in TABLES:
            connection.execute(f"drop table if exists {table}")
            connection.execute(f"create table {table} (id int)")
        yield connection
        for table in TABLES:
            connection.execute(f"drop table {table}")


@pytest.fixture(params=APPS)
def service(request, postgres, tables, tmp_path):
    """One of the applications behind a real server."""
    command = APPS[request.param].format(app=request.param)
    server = Server(request.param, command, tmp_path / "log", {"DATABASE_URL": postgres.url("")})
    try:
        server.wait()
        wait_until(lambda: asyncio.run(answers(server)) == [b"200", b"200"], seconds=60)
        yield server
    finally:
        server.stop()


async def answers(server):
    """The status of one request to each route."""
    try:
        return [await tracked(server.address, path, 0) for path in ("orders", "items")]
    except OSError:
        return []


async def tracked(address, path, number):
    """The status of one request."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(
            b"GET /%s/%d HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n" % (path.encode(), number)
        )
        status = (await reader.readline()).split()[1]
        await reader.read()
        return status
    finally:
        writer.close()


async def traffic(address, seen):
    """Requests to both routes while the lock lasts, each on a connection of its own."""

    async def users(path, rate):
        async with asyncio.TaskGroup() as group:
            for number in range(int(LOCKED * rate)):
                group.create_task(user(path, number))
                await asyncio.sleep(1 / rate)

    async def user(path, number):
        seen[path][await tracked(address, path, number)] += 1

    await asyncio.gather(*(users(path, rate) for path, rate in RATES.items()))


@pytest.mark.slow
@pytest.mark.sampled(1)
def test_a_locked_table_refuses_nobody_who_asks_for_another(service, tables):
    """Nothing is declared, no function is decorated: the routes are the workloads."""
    seen = {"orders": Counter(), "items": Counter()}

    async def main():
        with tables.transaction():
            tables.execute(f"lock table {TABLES[0]} in access exclusive mode")
            await traffic(service.address, seen)

    asyncio.run(main())
    assert seen["items"] == {b"200": int(LOCKED * RATES["items"])}
    assert seen["orders"][b"503"] > 0.5 * LOCKED * RATES["orders"]
    wait_until(lambda: asyncio.run(answers(service)) == [b"200", b"200"], seconds=20)
