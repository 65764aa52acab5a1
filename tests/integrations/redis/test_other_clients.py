"""Clients that are not redis-py's plain ones: what `protect` says, and how their parts are guarded."""

from __future__ import annotations

import warnings

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from guardrails import BreakerPolicy, ConfigurationError, RejectedError, protect
from guardrails.testing.servers import ValkeyServer
from support.polling import poll
from support.redis_lab import frozen

multidb = pytest.importorskip("redis.multidb.client")
config = pytest.importorskip("redis.multidb.config")


@pytest.fixture
def databases():
    with ValkeyServer.start() as first, ValkeyServer.start() as second:
        yield first, second


@pytest.fixture
def client(databases):
    """A MultiDBClient of two servers; the first one is active."""
    settings = config.MultiDbConfig(
        databases_config=[
            config.DatabaseConfig(
                weight=weight, client_kwargs={"host": "127.0.0.1", "port": server.port, "socket_timeout": 20}
            )
            for weight, server in zip((1.0, 0.5), databases, strict=True)
        ],
        command_retry=Retry(NoBackoff(), 3),
        min_num_failures=3,
        health_check_interval=60,
    )
    settings.command_retry.update_supported_errors((RejectedError,))
    with warnings.catch_warnings(action="ignore"):  # it is experimental
        made = multidb.MultiDBClient(settings)
    yield made
    made.close()


def test_a_client_of_several_databases_is_refused_with_advice(client):
    with pytest.raises(ConfigurationError, match=r"each of its databases: protect\(database.client\)"):
        protect(client)


def test_a_guard_for_each_database_makes_redis_py_fail_over(client, databases):
    policy = BreakerPolicy(consecutive_failures=3)
    guards = [
        protect(database.client, name=f"db{number}", timeout=0.3, breaker=policy)
        for number, (database, _) in enumerate(client.get_databases())
    ]
    assert client.set("k", "first") is True
    assert guards[0].snapshot().succeeded > 0
    for server, value in zip(databases, ("first", "second"), strict=True):
        with redis.Redis(port=server.port) as direct:
            direct.set("k", value)
    with frozen(databases[0]):

        def answered_by_the_second():
            try:
                return client.get("k") == b"second"
            except (RejectedError, TimeoutError, redis.RedisError):
                return False

        poll(answered_by_the_second, "the fail-over")
        assert guards[0].snapshot().failed >= 3
        assert guards[1].snapshot().succeeded > 0
        assert guards[1].snapshot().failed == 0
