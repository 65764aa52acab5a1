"""Over TLS, too, every call ends by its deadline, no caller gets another's reply, and secrets stay."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading

import pytest
import redis
import redis.asyncio
import trustme
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection

from guardrails import CallTimeoutError, protect
from guardrails.testing.proxy import FaultProxy
from support.polling import poll
from support.redis_lab import QUIET, Stopwatch, frozen
from support.tls_relay import TlsRelay

GIVEN = 1.0
"""Seconds for a call: a handshake takes several turns of each side, of which a busy machine has few."""

LATE = 3.0
"""Seconds by which it may be late on such a machine; unguarded it would wait for 20."""


@pytest.fixture(scope="module")
def authority():
    """Who signs the certificates of this run."""
    return trustme.CA()


@pytest.fixture(autouse=True)
def roots(authority, tmp_path, monkeypatch):
    """Whom this machine trusts: without it redis-py would read 0.1 s of certificates for each connection."""
    path = tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    return path


@pytest.fixture(scope="module")
def tls_port(valkey, authority):
    """Where the server of the run is reached by TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    with TlsRelay(valkey.port, context) as relay:
        yield relay.port


@pytest.fixture
def secure(cache, tls_port):
    """A client of each flavour that speaks TLS through a wire that can be broken; and that wire."""
    with FaultProxy(tls_port) as wire:
        cache.port = wire.port
        cache.protect(guard={"timeout": GIVEN}, ssl=True, max_connections=2)
        yield cache, wire
        wire.heal()


def warm(cache):
    """Opens a connection and leaves it in the pool. A handshake may take long on a busy machine."""
    for _ in range(20):
        with contextlib.suppress(CallTimeoutError):
            assert cache.do(lambda client: client.set("key", "value"))
            return
    raise AssertionError("no handshake came to its end")


def is_stopped_in_time(cache, work):
    """Runs work that must be stopped at its deadline, with its connection closed and its slot free."""
    with Stopwatch() as watch, pytest.raises(CallTimeoutError):
        cache.do(work)
    assert watch.seconds < GIVEN + LATE
    assert cache.out() == cache.guard.snapshot().in_use == 0


def test_commands_and_pipelines_pass(secure):
    """The client works as it did, and stays TLS."""
    cache, _ = secure
    warm(cache)
    assert cache.do(lambda client: client.get("key")) == b"value"
    big = b"x" * 300_000  # many TLS records
    assert cache.do(lambda client: client.pipeline().set("big", big).get("big").delete("big").execute()) == [
        True,
        big,
        1,
    ]
    assert "SSLConnection" in cache.pool.connection_class.__name__


WHEN = pytest.mark.parametrize("when", ["cold", "warm"])
"""Whether the connection has yet to be opened, TLS handshake and all."""


@WHEN
def test_frozen_server_does_not_hold_the_caller(secure, valkey, when):
    """The wire is alive, TLS too, and nothing comes."""
    cache, _ = secure
    if when == "warm":
        warm(cache)
    with frozen(valkey):
        is_stopped_in_time(cache, lambda client: client.get("key"))
    warm(cache)


@WHEN
def test_late_wire_does_not_hold_the_caller(secure, when):
    """Every byte arrives, too late: in the TLS handshake or after it."""
    cache, wire = secure
    if when == "warm":
        warm(cache)
    wire.delay(GIVEN * 2, towards="client")
    is_stopped_in_time(cache, lambda client: client.get("key"))
    wire.heal()
    warm(cache)


def test_an_unanswered_handshake_is_bounded(secure):
    """Cold: the connection is accepted, and the TLS handshake gets no answer."""
    cache, wire = secure
    wire.hang()
    is_stopped_in_time(cache, lambda client: client.get("key"))
    assert cache.guard.snapshot().failed == 1
    wire.heal()
    warm(cache)


@WHEN
def test_trickling_wire_cannot_extend_the_deadline(secure, when):
    """A byte of a TLS record now and then is no progress, in the handshake or after it."""
    cache, wire = secure
    if when == "warm":
        warm(cache)
        cache.do(lambda client: client.set("key", "v" * 100))
    wire.slice(1, every=0.08)
    is_stopped_in_time(cache, lambda client: client.get("key"))
    wire.heal()
    warm(cache)


@pytest.mark.parametrize("fault", ["reset", "half_close", "truncate"])
def test_cut_wire_ends_in_time(secure, fault):
    """A connection that dies in the middle of a record is an error by the deadline, and not used again."""
    cache, wire = secure
    warm(cache)
    if fault == "truncate":
        wire.cut_after(3)
    else:
        wire.delay(0.15)
        threading.Timer(0.05, getattr(wire, fault)).start()
    with Stopwatch() as watch, pytest.raises((CallTimeoutError, redis.ConnectionError)):
        cache.do(lambda client: client.get("key"))
    assert watch.seconds < GIVEN + LATE
    wire.heal()
    warm(cache)
    assert cache.guard.snapshot().in_use == 0


def test_stopped_calls_leave_no_reply_behind(secure):
    """A late reply reaches no caller: unique values over a wire that is sometimes slow."""
    cache, wire = secure
    warm(cache)
    for number in range(9):
        wire.delay(GIVEN if number % 3 == 0 else 0)
        value = f"value-{number}".encode()
        with contextlib.suppress(CallTimeoutError):
            assert cache.do(lambda client, value=value: client.echo(value)) == value
    assert cache.guard.snapshot().failed >= 3


def test_a_server_with_an_untrusted_certificate_is_a_failure(cache, tls_port, roots):
    """An untrusted certificate prevents connecting: a failure, without a wait."""
    trustme.CA().cert_pem.write_to_path(roots)
    cache.port = tls_port
    guard = cache.protect(guard={"timeout": 5}, ssl=True)
    with Stopwatch() as watch, pytest.raises(redis.ConnectionError, match="certificate"):
        cache.do(lambda client: client.get("key"))
    assert watch.seconds < 5
    assert guard.snapshot().failed == 1


def test_rediss_url_works_and_hides_its_password(tls_port):
    """A rediss:// URL is guarded like any other, and its password is shown by nothing of ours."""
    url = f"rediss://user:hunter2@127.0.0.1:{tls_port}/0"
    client = redis.Redis.from_url(url)
    guard = protect(client, breaker=QUIET)
    with pytest.raises(redis.RedisError) as caught:
        client.get("key")  # the server knows no such user
    assert "hunter2" not in f"{guard!r} {guard.snapshot()} {caught.value}"
    client.close()

    async def main():
        client = redis.asyncio.Redis.from_url(url.replace("user:hunter2@", ""))
        guard = protect(client, breaker=QUIET)
        assert await client.ping()
        await client.aclose()
        return guard.snapshot()

    assert asyncio.run(main()).succeeded == 1


def test_a_kept_reply_is_used_while_its_connection_waits(valkey, tls_port, monkeypatch):
    """The thread waits for the next record, so every invalidation that has arrived is known."""
    monkeypatch.setattr(CacheProxyConnection, "DEFAULT_SERVER_NAME", "valkey")
    client = redis.Redis(port=tls_port, ssl=True, protocol=3, cache_config=CacheConfig())
    guard = protect(client, name="cache", timeout=20, breaker=QUIET)
    with redis.Redis(port=valkey.port) as other:
        other.set("k", "old")
        assert client.get("k") == b"old"
        waiting = threading.Thread(target=client.blpop, args=("jobs",), kwargs={"timeout": 20})
        waiting.start()
        poll(lambda: other.info("clients")["blocked_clients"] == 1, "the thread waits")
        before = guard.snapshot().admitted
        assert client.get("k") == b"old"
        assert guard.snapshot().admitted == before
        other.set("k", "new")
        poll(lambda: client.get("k") == b"new", "the change")
        other.rpush("jobs", "x")
        waiting.join(20)
        assert not waiting.is_alive()
        other.delete("k")
    client.connection_pool.disconnect()
