"""The WSGI middleware under load, behind real servers with threads.

The bounds are wide: what is asserted is which of two worlds we are in, not how fast the machine is.
"""

from __future__ import annotations

import asyncio

import pytest

from support.apps.crowd_app import SECONDS, SLOTS
from support.http_load import Crowd, of, ready, together
from support.polling import wait_until
from support.server_process import Server

SERVERS = {
    "gunicorn, gthread": (
        "gunicorn crowd_app:wsgi --worker-class gthread --threads 32 --keep-alive 75 --bind 127.0.0.1:{port}"
    ),
    # By default it takes 100 connections. The next waits until one of these closes, and clients keep theirs.
    "waitress": "waitress --listen 127.0.0.1:{port} --threads 32 --connection-limit 1000 crowd_app:wsgi",
}


@pytest.fixture(params=SERVERS)
def service(request, tmp_path):
    """The service behind each of the servers, with three times as many threads as slots."""
    server = Server(request.param, SERVERS[request.param], tmp_path / "log")
    try:
        yield server.wait()
    finally:
        server.stop()


@pytest.mark.slow
def test_a_flood_of_batches_leaves_the_people_alone(service):
    """SHEDDABLE requests at five times the capacity, CRITICAL ones at a quarter of it."""
    seconds, capacity = 6, SLOTS / SECONDS
    rates = {"/query": capacity / 4, "/batch": 5 * capacity}

    async def visits():
        arrivals = together(
            *[[(n / rate, path) for n in range(int(seconds * rate))] for path, rate in rates.items()]
        )
        async with Crowd(service.address) as crowd:
            await ready(crowd)
            return await crowd.visit(arrivals, 30)

    seen = asyncio.run(visits())
    people, batches = of(seen, "/query"), of(seen, "/batch")
    assert (len(people), len(batches)) == (30, 600)
    assert len(of(people, status=200)) >= 0.7 * len(people)  # one in five, if all were alike
    assert 0 < len(of(batches, status=200)) < 0.5 * len(batches)
    assert len(of(batches, status=200)) + len(of(batches, status=503)) == len(batches)
    wait_until(lambda: not any(service.figures().values()))
