"""Over a Unix socket, from a ``unix://`` URL, the same holds: in time, one's own replies, evidence."""

from __future__ import annotations

import pytest
import redis

from guardrails import CallTimeoutError
from guardrails.testing.servers import ValkeyServer
from support.redis_lab import LATE, Stopwatch, frozen

GIVEN = 0.3
"""Seconds for a call."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Where the server listens; short, for a socket's name may have 107 bytes."""
    return tmp_path_factory.mktemp("unix") / "socket"


@pytest.fixture(scope="module")
def server(path):
    """A server with such a socket."""
    with ValkeyServer.start("--unixsocket", str(path)) as server:
        yield server


@pytest.fixture
def local(cache, path):
    """A guarded client of each flavour that goes there."""
    cache.protect(url=f"unix://{path}?db=0", guard={"timeout": GIVEN})
    return cache


SHAPES = pytest.mark.parametrize(
    "work",
    [
        lambda client: client.echo("mine"),
        lambda client: client.pipeline(transaction=False).echo("mine").echo("mine").execute(),
        lambda client: client.pipeline().echo("mine").echo("mine").execute(),
    ],
    ids=["command", "pipeline", "transaction"],
)


@SHAPES
@pytest.mark.parametrize("when", ["cold", "warm"])
def test_frozen_server_does_not_hold_the_caller(local, server, work, when):
    """Back at the deadline, connection closed, slot free; and the next call has its own answer."""
    if when == "warm":
        local.do(work)
    with frozen(server), Stopwatch() as watch, pytest.raises(CallTimeoutError):
        local.do(work)
    assert watch.seconds < GIVEN + LATE
    assert local.out() == local.guard.snapshot().in_use == 0
    assert local.guard.snapshot().failed == 1
    assert local.do(work) in (b"mine", [b"mine", b"mine"])
    assert "UnixDomainSocketConnection" in local.pool.connection_class.__name__


def test_blocking_pop_waits_as_long_as_it_asked(local, server):
    """It bounds itself, here too."""
    with Stopwatch() as watch:
        assert local.do(lambda client: client.blpop("nobody", timeout=1)) is None
    assert watch.seconds >= 0.95
    assert local.guard.snapshot().succeeded == 1


def test_a_missing_socket_is_a_failure(cache, path):
    """Without a socket of that name the call fails at once, and it is evidence."""
    guard = cache.protect(url=f"unix://{path}-not", guard={"timeout": 5})
    with Stopwatch() as watch, pytest.raises(redis.ConnectionError):
        cache.do(lambda client: client.echo("mine"))
    assert watch.seconds < 5
    assert guard.snapshot().failed == 1
