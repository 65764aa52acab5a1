"""A fleet whose store is found through Sentinels: the URL, and a real fail-over to an empty replica."""

from __future__ import annotations

import contextlib

import pytest
import redis
from click.testing import CliRunner
from sqlalchemy import create_engine, text

from guardrails import ConfigurationError, protect
from guardrails.cli.fleet import fleet as command
from guardrails.fleet import Fleet
from guardrails.fleet._redis_store import RedisStore
from guardrails.fleet._sentinel_url import client_of
from guardrails.fleet._stores import StoreError
from guardrails.testing.servers import ValkeyServer
from support.polling import poll, wait_until
from support.redis_lab import frozen
from support.sentinel import SentinelServer

# --- the URL --------------------------------------------------------------------------------------------


def parts(url):
    """The addresses and options of the sentinels, and those of the server."""
    pool = client_of(url, socket_timeout=0.5).connection_pool
    sentinels = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
    return [(each["host"], each["port"]) for each in sentinels], sentinels[0], pool


def test_the_url_has_the_sentinels_the_name_and_the_database():
    places, of_sentinel, pool = parts(
        "redis+sentinel://app:p%40ss@one,two:5000,[::1]:6000/shop/3?sentinel_password=s&health_check_interval=9"
    )
    assert places == [("one", 26379), ("two", 5000), ("::1", 6000)]
    assert pool.service_name == "shop"
    kwargs = pool.connection_kwargs
    assert (kwargs["db"], kwargs["username"], kwargs["password"]) == (3, "app", "p@ss")
    assert (kwargs["health_check_interval"], kwargs["socket_timeout"]) == (9, 0.5)
    assert (of_sentinel["password"], of_sentinel.get("username"), of_sentinel["socket_timeout"]) == (
        "s",
        None,
        0.5,
    )
    assert "SSL" not in pool.connection_class.__name__


def test_tls_is_for_the_server_and_the_sentinels():
    _, of_sentinel, pool = parts("rediss+sentinel://one/shop?ssl_ca_certs=/ca.pem")
    assert "SSL" in pool.connection_class.__name__
    assert pool.connection_kwargs["ssl_ca_certs"] == of_sentinel["ssl_ca_certs"] == "/ca.pem"


WRONG = """
one one/ one,,two/shop one:canary/shop /shop a:canary@/shop one/shop/canary one/shop?sentinel_canary=1
one/shop?canary=1 one:999999/shop
"""


@pytest.mark.parametrize("rest", ["", *WRONG.split()])
def test_a_wrong_url_is_refused_without_its_text(rest):
    with pytest.raises(ConfigurationError, match="one that redis-py can read") as raised:
        Fleet(f"redis+sentinel://{rest}", name="shop")
    assert "canary" not in str(raised.value)


# --- real sentinels -------------------------------------------------------------------------------------


@pytest.fixture
def house():
    """A primary with a replica that copies nothing yet, a server that says nothing, and a sentinel."""
    prompt = ("--repl-diskless-sync-delay", "0")
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(ValkeyServer.start(*prompt))
        replica = stack.enter_context(ValkeyServer.start("--replicaof", f"127.0.0.1 {primary.port}", *prompt))
        mute = stack.enter_context(ValkeyServer.start())
        sentinel = stack.enter_context(
            SentinelServer.start(
                f"sentinel monitor shop 127.0.0.1 {primary.port} 1",
                "sentinel down-after-milliseconds shop 1000",
                "sentinel failover-timeout shop 5000",
            )
        )
        with redis.Redis(port=sentinel.port) as asking:
            poll(lambda: _knows_replica(asking), "the sentinel knows the replica", 40)
        stack.enter_context(frozen(mute))
        yield primary, replica, f"redis+sentinel://127.0.0.1:{mute.port},127.0.0.1:{sentinel.port}/shop/0"


def _knows_replica(asking):
    replicas = asking.sentinel_slaves("shop")
    return replicas and replicas[0]["master-link-status"] == "ok" and not replicas[0]["is_disconnected"]


@pytest.mark.slow
def test_a_fail_over_to_an_empty_replica_is_a_learning_period(house, tmp_path, monkeypatch, caplog):
    """The worker keeps what it has, says once that contact is lost, and finds the new primary by itself."""
    primary, replica, url = house
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db", pool_size=8, max_overflow=0)
    fleet = Fleet(url, name="shop")
    guard = protect(engine, fleet=fleet.budget("db", connections=8, minimum=2))

    def lease():
        return guard.snapshot().pool.lease

    connections = [engine.connect() for _ in range(2)]
    wait_until(lambda: lease().in_contact and lease().limit >= 3, 30)
    with redis.Redis(port=replica.port) as client:
        wait_until(lambda: client.keys("guardrails:*"))
    with redis.Redis(port=primary.port) as client:
        client.flushall()  # what a fail-over to a replica that lacks the last writes loses
    primary.kill()
    wait_until(lambda: not lease().in_contact, 30)
    assert lease().limit >= 2
    for connection in connections:
        assert connection.scalar(text("select 1")) == 1
    wait_until(lambda: lease().in_contact, 60)
    output = CliRunner().invoke(command, [url]).output
    assert ", learning" in output.splitlines()[0]
    assert lease().limit >= 2
    wait_until(lambda: lease().limit >= 3, 30)
    assert len([line for line in caplog.messages if "no contact to its store" in line]) == 1
    for connection in connections:
        connection.close()
    guard.detach()
    engine.dispose()
    fleet.close()


def test_sentinels_that_know_no_primary_are_named(house):
    _, _, url = house
    store = RedisStore(url.replace("/shop/0", "/other"), "shop")
    with pytest.raises(StoreError, match="no sentinel in reach knows its primary"):
        store.read()
    store.close()
