"""Client-side caching: kept replies need no slot and no server, and are never foreign and never old."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
import time
import types

import pytest
import redis
import redis.sentinel
from redis.cache import CacheConfig, CacheFactory, DefaultCache
from redis.connection import CacheProxyConnection

from guardrails import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    deadline,
    protect,
)
from guardrails.integrations.redis import _caching, _local_cache
from guardrails.integrations.redis._socket import BoundedSocket
from guardrails.testing.cluster import ValkeyCluster
from guardrails.testing.proxy import FaultProxy
from guardrails.testing.servers import ValkeyServer
from support.lateness import ROOM
from support.polling import poll
from support.redis_lab import LATE, QUIET, Stopwatch, frozen, nimble, with_each_parser


@pytest.fixture(autouse=True)
def valkey_counts_as_redis(monkeypatch):
    """redis-py caches only for a server that calls itself Redis; Valkey sends the same messages."""
    monkeypatch.setattr(CacheProxyConnection, "DEFAULT_SERVER_NAME", "valkey")


@pytest.fixture
def other(valkey):
    """A client without a cache and a guard."""
    with redis.Redis(port=valkey.port) as client:
        client.flushall()
        yield client


@pytest.fixture
def start(valkey, other, parser):
    """Makes guarded clients with a cache."""
    clients = []

    def make(*, port=None, pool=None, guard=None, **options):
        options = {"port": port or valkey.port, "protocol": 3, "cache_config": CacheConfig()} | options
        client = redis.Redis(connection_pool=pool(**options)) if pool else redis.Redis(**options)
        clients.append(client)
        return client, protect(client, **({"name": "cache", "breaker": QUIET, "timeout": 10} | (guard or {})))

    yield make
    for client in clients:
        client.close()
        client.connection_pool.disconnect()


def admitted(guard):
    return guard.snapshot().admitted


pools = pytest.mark.parametrize("pool", [redis.ConnectionPool, redis.BlockingConnectionPool])


# --- hits ------------------------------------------------------------------------------------------


@with_each_parser
@pools
def test_a_hit_takes_no_slot_and_asks_nobody(start, other, pool):
    client, guard = start(pool=pool)
    other.set("k", "v")
    other.rpush("l", "a", "b")
    assert (client.get("k"), client.lrange("l", 0, -1)) == (b"v", [b"a", b"b"])
    before = admitted(guard)
    client.lrange("l", 0, -1).append("mine")
    assert [client.get("k") for _ in range(10)] == [b"v"] * 10
    assert client.lrange("l", 0, -1) == [b"a", b"b"]
    assert admitted(guard) == before


def test_a_hit_passes_an_open_circuit_a_full_bulkhead_and_a_spent_deadline(start, other):
    client, guard = start(guard={"max_concurrent_calls": 2, "max_wait_duration": 0})
    other.set("k", "v")
    assert client.get("k") == b"v"
    guard.force_open()
    assert client.get("k") == b"v"
    with pytest.raises(CircuitOpenError):
        client.get("unknown")
    guard.reset()
    with deadline(0.001):
        time.sleep(0.01)
        assert client.get("k") == b"v"
    pool = client.connection_pool
    held = [pool.get_connection(), pool.get_connection()]
    with pytest.raises(BulkheadFullError):
        client.get("unknown")
    for connection in held:
        pool.release(connection)
    assert client.get("k") == b"v"


def test_the_hit_of_another_client_of_the_pool_is_no_evidence(start, other):
    client, guard = start()
    second = redis.Redis(connection_pool=client.connection_pool)
    other.set("k", "v")
    client.get("k")
    calls, sent = guard.snapshot().calls, other.info("commandstats")["cmdstat_get"]["calls"]
    assert second.get("k") == b"v"
    assert guard.snapshot().calls == calls
    assert other.info("commandstats")["cmdstat_get"]["calls"] == sent
    assert guard.snapshot().in_use == 0


def test_an_error_is_not_kept(start, other):
    """redis-py waits for the reply of a command that it has not sent: its issue 4306."""
    client, _ = start()
    other.rpush("l", "a")
    for _ in range(2):
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            client.get("l")
    other.delete("l")
    other.set("l", "text")
    assert client.get("l") == b"text"


def test_commands_that_keep_nothing_answer_as_without_a_cache(start, other):
    client, guard = start()
    assert client.get("nothing") is None
    assert client.set("k", "v") is True
    assert client.execute_command("GET", "k") == b"v"
    assert client.get(bytearray(b"k")) == b"v"
    with client.pipeline(transaction=True) as pipe:
        pipe.watch("k")
        assert pipe.get("k") == b"v"
        pipe.multi()
        pipe.set("k", "w").get("k")
        assert pipe.execute() == [True, b"w"]
    with client.pipeline() as pipe:
        pipe.watch("k")  # given up
    with client.lock("lock", timeout=10):
        assert client.get("lock") is not None
    with client.pubsub() as subscriber:
        subscriber.subscribe("news")
        assert subscriber.get_message(timeout=10)["type"] == "subscribe"
    assert client.blpop("empty", timeout=0.01) is None
    assert guard.snapshot().in_use == 0
    assert guard.snapshot().failed == 0


def test_a_transaction_reads_what_it_watches_from_the_server(start, other):
    client, _ = start()
    other.set("k", "v")
    assert client.get("k") == b"v"

    def asked():
        return other.info("commandstats")["cmdstat_get"]["calls"]

    with client.pipeline(transaction=True) as pipe:
        before = asked()
        pipe.watch("k")
        assert [pipe.get("k"), pipe.get("k")] == [b"v", b"v"]
        assert asked() == before + 2
        pipe.multi()
        pipe.set("k", "w")
        pipe.execute()
    poll(lambda: client.get("k") == b"w", "the change")
    before = asked()
    assert client.get("k") == b"w"
    assert asked() == before


def test_health_checks_do_not_block(start, other):
    """redis-py's issue 3470."""
    client, _ = start(health_check_interval=0.01)
    other.set("k", "v")
    for number in range(5):
        assert client.get("k") == b"v"
        other.set("k", "v")
        time.sleep(0.02)
        client.set("unrelated", number)


def test_without_the_guard_redis_py_caches_as_before(start, other):
    client, guard = start()
    other.set("k", "v")
    assert client.get("k") == b"v"
    guard.detach()
    assert type(client) is redis.Redis
    assert client.get_cache().size == 0
    assert [client.get("k"), client.get("k")] == [b"v", b"v"]
    assert client.get_cache().size == 1
    again = protect(client, name="cache")
    assert [client.get("k"), client.get("k")] == [b"v", b"v"]
    assert admitted(again) == 1


def test_a_shadow_keeps_replies_too(start, other):
    client, guard = start(guard={"mode": "shadow"})
    other.set("k", "v")
    assert [client.get("k"), client.get("k")] == [b"v", b"v"]
    assert admitted(guard) == 1
    guard.set_mode("off")
    assert client.get("k") == b"v"
    assert admitted(guard) == 1


# --- never old -------------------------------------------------------------------------------------


@with_each_parser
@pools
def test_a_key_that_another_client_changes_is_asked_again(start, other, pool):
    client, _ = start(pool=pool)
    for number in range(20):
        other.set("k", number)
        poll(lambda number=number: client.get("k") == b"%d" % number, "the change")
        assert client.get("k") == b"%d" % number  # kept


def test_the_client_reads_its_own_writes(start):
    client, _ = start()
    for number in range(200):
        client.set("k", number)
        assert client.get("k") == b"%d" % number


def test_a_change_is_seen_while_its_connection_waits_for_something_else(start, other):
    """The connection that has read the key now waits for an element: its thread reads what is invalid."""
    client, guard = start()
    other.set("k", "old")
    assert client.get("k") == b"old"
    waiting = threading.Thread(target=client.blpop, args=("jobs",), kwargs={"timeout": 20})
    waiting.start()
    poll(lambda: other.info("clients")["blocked_clients"] == 1, "the thread waits")
    before = admitted(guard)
    assert client.get("k") == b"old"
    assert admitted(guard) == before
    other.set("k", "new")
    poll(lambda: client.get("k") == b"new", "the change")
    other.rpush("jobs", "x")
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_connection_that_nobody_reads_serves_hits_until_something_arrives(start, other):
    client, guard = start()
    other.mset({"k": "old", "m": "v"})
    assert (client.get("k"), client.get("m")) == (b"old", b"v")
    held = client.connection_pool.get_connection()
    before = admitted(guard)
    assert client.get("k") == b"old"
    assert admitted(guard) == before
    other.set("k", "new")
    poll(lambda: client.get("k") == b"new", "the change")
    assert client.get("m") == b"v"
    assert admitted(guard) == before + 2  # both are asked again
    client.connection_pool.release(held)


def test_a_connection_that_sends_serves_no_hit_after_a_change(start, other):
    """Its thread reads nothing meanwhile, so a change that has arrived is not known."""
    with FaultProxy(other.connection_pool.connection_kwargs["port"]) as wire:
        client, _ = start(port=wire.port, guard={"timeout": 60})
        other.set("k", "old")
        assert client.get("k") == b"old"
        connection = client.connection_pool._available_connections[-1]
        wire.hang("server")
        upload = client.pipeline(transaction=False).set("large", b"x" * 30_000_000)
        sender = threading.Thread(target=upload.execute)
        sender.start()
        poll(lambda: connection.is_working, "the upload")
        other.set("k", "new")
        poll(connection.has_data, "the message")
        with deadline(0.2), pytest.raises(CallTimeoutError):
            client.get("k")
        wire.heal()
        sender.join(60)
        assert not sender.is_alive()


@with_each_parser
def test_a_change_that_its_thread_has_read_and_not_yet_handled_serves_no_hit(start, other, monkeypatch):
    """The thread has the bytes and waits for the GIL; the system has nothing left to read."""
    client, _ = start()
    other.set("k", "old")
    assert client.get("k") == b"old"
    waiting = threading.Thread(target=client.blpop, args=("jobs",), kwargs={"timeout": 20})
    taken, go_on = threading.Event(), threading.Event()

    def slow(read):
        def reading(sock, *args):
            got = read(sock, *args)
            if threading.current_thread() is waiting:
                taken.set()
                go_on.wait(20)
            return got

        return reading

    for name in ("recv", "recv_into"):
        monkeypatch.setattr(BoundedSocket, name, slow(getattr(BoundedSocket, name)))
    waiting.start()
    poll(lambda: other.info("clients")["blocked_clients"] == 1, "the thread waits")
    other.set("k", "new")
    assert taken.wait(20)
    assert client.get("k") == b"new"
    go_on.set()
    other.rpush("jobs", "x")
    waiting.join(20)
    assert not waiting.is_alive()


@pools
def test_a_finaliser_that_gives_back_a_connection_does_not_hang(start, other, pool, monkeypatch):
    """A collection of garbage may run wherever an invalidation is handled, and redis-py's finalisers take
    the lock of a pool."""
    client, _ = start(pool=pool)
    handle = DefaultCache.delete_by_cache_keys
    collected = []

    def collecting(cache, keys):
        collected.append(gc.collect())
        return handle(cache, keys)

    monkeypatch.setattr(DefaultCache, "delete_by_cache_keys", collecting)

    def forget_and_read():
        node = types.SimpleNamespace(pipeline=client.pipeline())
        node.itself = node
        node.pipeline.watch("w")
        del node
        other.set("k", "old")
        assert client.get("k") == b"old"
        other.set("k", "new")
        poll(lambda: client.get("k") == b"new", "the change")

    thread = threading.Thread(target=forget_and_read, daemon=True)
    gc.disable()
    try:
        thread.start()
        thread.join(20)
    finally:
        gc.enable()
    assert not thread.is_alive()
    assert collected


def test_a_connection_that_is_killed_empties_the_cache(start, other):
    client, _ = start()
    other.mset({"k": "old", "m": "v"})
    assert (client.get("k"), client.get("m")) == (b"old", b"v")
    other.client_kill_filter(_type="normal", skipme=True)
    other.set("k", "new")
    poll(lambda: client.get("k") == b"new", "the change", ROOM)
    assert client.get("m") == b"v"


def test_hits_go_on_while_the_server_is_frozen_until_a_miss_is_stopped(start):
    """A frozen server changes no key. A stopped command closes its connection, which empties the cache."""
    with ValkeyServer.start() as server, redis.Redis(port=server.port) as direct:
        client, guard = start(port=server.port, guard={"timeout": 0.3, "breaker": nimble()})
        direct.set("k", "old")
        assert client.get("k") == b"old"
        with frozen(server):
            assert client.get("k") == b"old"
            with Stopwatch() as watch, pytest.raises(CallTimeoutError):
                client.get("unknown")
            assert watch.seconds < 0.3 + LATE
            with pytest.raises((CallTimeoutError, CircuitOpenError)):
                client.get("k")
            poll(lambda: refused(client), "the circuit opens")
        direct.set("k", "new")
        poll(lambda: not refused(client), "the circuit closes")
        assert client.get("k") == b"new"
        assert guard.snapshot().in_use == 0


def refused(client):
    try:
        client.get("unknown")
    except (CallTimeoutError, CircuitOpenError) as error:
        return isinstance(error, CircuitOpenError)
    return False


def test_a_silent_cut_ends_hits_in_time(start, other, monkeypatch):
    """Nothing arrives and nothing is closed: after the longest silence the server is asked."""
    monkeypatch.setattr(_caching, "LONGEST_SILENCE", 1.0)
    with FaultProxy(other.connection_pool.connection_kwargs["port"]) as wire:
        client, _ = start(port=wire.port, guard={"timeout": 0.2})
        other.set("k", "old")
        assert client.get("k") == b"old"
        heard = time.monotonic()
        wire.hang()
        other.set("k", "new")
        with contextlib.suppress(CallTimeoutError):
            while True:
                assert client.get("k") == b"old"
                assert time.monotonic() - heard < 1.0 + ROOM
                time.sleep(0.01)
        wire.heal()
        assert client.get("k") == b"new"


def test_a_quiet_connection_is_asked_again(start, other, monkeypatch):
    monkeypatch.setattr(_caching, "LONGEST_SILENCE", 0.0)
    client, guard = start()
    other.set("k", "v")
    assert [client.get("k"), client.get("k")] == [b"v", b"v"]
    assert admitted(guard) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_process_asks_for_itself(start, other):
    client, _ = start()
    other.set("k", "old")
    assert client.get("k") == b"old"
    child = os.fork()
    if child == 0:
        other.connection_pool.reset()
        other.set("k", "new")
        os._exit(0 if client.get("k") == b"new" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    poll(lambda: client.get("k") == b"new", "the change")  # its own connection is whole


@pytest.mark.parametrize("life", [{"max_lifetime": 1.0}, {"idle_timeout": 0.5}, {"keepalive": 0.5}], ids=str)
def test_idle_connections_are_looked_after(start, other, life):
    client, guard = start(guard=life)
    until = time.monotonic() + 2.5
    number = 0
    while time.monotonic() < until:
        number += 1
        other.set("k", number)
        poll(lambda: client.get("k") == b"%d" % number, "the change")  # noqa: B023 - called here
        assert client.get("k") == b"%d" % number
        time.sleep(0.05)
    assert guard.snapshot().pool.opened <= 4
    assert guard.snapshot().failed == 0


# --- many threads ------------------------------------------------------------------------------------


def test_threads_that_miss_the_same_key_at_once_all_get_it(start, other):
    """redis-py's second thread waits for the reply of a command that it has not sent: its issue 3600."""
    client, _ = start(guard={"timeout": 20})
    for round_ in range(20):
        key = f"k{round_}"
        other.set(key, key)
        barrier = threading.Barrier(8)
        got = []

        def read(key=key, barrier=barrier, got=got):
            barrier.wait(20)
            got.append(client.get(key))

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert got == [key.encode()] * 8


class History:
    """Keys that a thread changes all the time, and what other threads read of them."""

    def __init__(self):
        self.versions = {f"key{number}": [(0.0, 0)] for number in range(30)}
        self.reads = []
        self.errors = []
        self.over = threading.Event()

    def write(self, client, version):
        key = random.Random(version).choice(list(self.versions))
        client.set(key, f"{key}:{version}")
        self.versions[key].append((time.monotonic(), version))

    def read(self, client, seed):
        choose, keys = random.Random(seed).choice, list(self.versions)
        while not self.over.is_set():
            key, began = choose(keys), time.monotonic()
            try:
                self.reads.append((key, began, client.get(key)))
            except redis.ConnectionError:
                pass  # its connection was killed
            except BaseException as error:
                self.errors.append(error)
                raise

    def check(self):
        for key, began, reply in self.reads:
            name, _, version = reply.decode().partition(":")
            assert name == key, "foreign"
            assert int(version) >= max(each for at, each in self.versions[key] if at <= max(0, began - ROOM))


@pytest.mark.slow  # ten thousand calls
@with_each_parser
@pools
@pytest.mark.parametrize("kills", [False, True], ids=["quiet", "kills"])
def test_no_reply_is_foreign_or_old_in_ten_thousand(start, other, pool, kills):
    client, guard = start(pool=pool, guard={"timeout": 20})
    history = History()
    other.mset({key: f"{key}:0" for key in history.versions})
    threads = [threading.Thread(target=history.read, args=(client, seed)) for seed in range(6)]
    for thread in threads:
        thread.start()
    until, version = time.monotonic() + 100, 0
    while (len(history.reads) < 10_000 or version < 300) and time.monotonic() < until:
        version += 1
        history.write(other, version)
        if kills and version % 50 == 0:
            other.client_kill_filter(_type="normal", skipme=True)
        time.sleep(0.002)
    history.over.set()
    for thread in threads:
        thread.join(60)
    assert history.errors == []
    assert len(history.reads) >= 10_000
    assert admitted(guard) < len(history.reads)  # there are hits
    history.check()
    for key, versions in history.versions.items():
        last = f"{key}:{versions[-1][1]}".encode()
        poll(lambda key=key, last=last: client.get(key) == last, "the last version", ROOM)
    assert guard.snapshot().in_use == 0


# --- sentinels and clusters ------------------------------------------------------------------------------


def test_a_sentinels_client_keeps_replies(valkey, other, monkeypatch):
    manager = redis.sentinel.Sentinel([("127.0.0.1", valkey.port)])
    monkeypatch.setattr(manager, "discover_master", lambda _: ("127.0.0.1", valkey.port))
    client = manager.master_for("shop", protocol=3, cache_config=CacheConfig())
    guard = protect(client, name="shop")
    try:
        other.set("k", "old")
        assert [client.get("k"), client.get("k")] == [b"old", b"old"]
        assert admitted(guard) == 1
        other.set("k", "new")
        poll(lambda: client.get("k") == b"new", "the change")
    finally:
        guard.detach()
        client.close()


@pytest.mark.slow  # starts a cluster
def test_a_clusters_client_keeps_replies(monkeypatch):
    with ValkeyCluster.start() as cluster:
        options = {"host": "127.0.0.1", "port": cluster.nodes[0].port}
        direct = redis.RedisCluster(**options)
        client = redis.RedisCluster(**options, protocol=3, cache_config=CacheConfig())
        guard = protect(client, name="shards", timeout=0.5, breaker=nimble())
        alone = redis.Redis(port=cluster.nodes[1].port, protocol=3, cache=client.nodes_manager._cache)
        with pytest.raises(ConfigurationError, match="cache is used by a guarded client with another"):
            protect(alone)
        keys = [f"key:{number}" for number in range(12)]
        for key in keys:
            direct.set(key, "old")
        assert [client.get(key) for key in keys] == [b"old"] * 12
        before = [admitted(part) for part in guard.compartments]
        assert [client.get(key) for key in keys] == [b"old"] * 12
        assert [admitted(part) for part in guard.compartments] == before
        for key in keys:
            direct.set(key, "new")
        poll(lambda: [client.get(key) for key in keys] == [b"new"] * 12, "the changes")

        source, target = cluster.nodes[:2]
        spans = next(
            line for line in source.ask("CLUSTER", "NODES").splitlines() if "myself" in line
        ).split()[8]
        first, last = map(int, spans.split("-"))
        key = next(key for key in keys if first <= cluster.slot(key) <= last)
        assert client.get(key) == b"new"
        cluster.begin_move(cluster.slot(key), source, target)
        cluster.move_key(key, source, target)
        cluster.end_move(cluster.slot(key), target)
        direct.set(key, "moved")
        poll(lambda: client.get(key) == b"moved", "the change on the other node")

        client.get(keys[0])
        guard.force_open()
        assert client.get(keys[0]) is not None
        guard.reset()
        cluster.promote(cluster.nodes[3])
        for each in keys:
            direct.set(each, "promoted")
        poll(
            lambda: [client.get(each) for each in keys] == [b"promoted"] * 12,
            "the changes on the new primary",
        )
        guard.detach()
        guard_of_one = protect(alone)
        with pytest.raises(ConfigurationError, match="with another cluster, whose replies"):
            protect(client)
        guard_of_one.detach()
        for each in (alone, client, direct):
            each.close()


def test_replies_are_kept_only_for_keys_that_an_invalidation_names(start, other):
    """Numbers, and texts beyond ASCII, are asked for each time: 1 and 1.0 are two keys of the server's."""
    client, guard = start()
    other.mset({"42": "old", "é": "old", "1": "one", "1.0": "float"})
    other.hset("map", mapping={"1": "one", "1.0": "float"})
    assert [client.get(42), client.get("é"), client.mget(7, 8)] == [b"old", b"old", [None, None]]
    assert [client.get(1), client.get(1.0)] == [b"one", b"float"]
    assert [client.hget("map", field) for field in ("1", 1, 1.0)] == [b"one", b"one", b"float"]
    other.mset({"42": "new", "é": "new", "7": "seven"})
    assert [client.get(42), client.get("é"), client.mget(7, 8)] == [b"new", b"new", [b"seven", None]]
    before = admitted(guard)
    for _ in range(3):
        assert client.getrange("1", 0, 1) == b"on"
    assert admitted(guard) == before + 1, "numbers beside the key are kept"


def test_a_reply_asked_for_as_bytes_is_not_kept(start, other):
    """Whoever asks without that option gets text."""
    client, _ = start(decode_responses=True)
    other.set("a", "x")
    assert client.execute_command("GET", "a", keys=["a"], NEVER_DECODE=True) == b"x"
    assert client.get("a") == "x"
    assert client.execute_command("GET", "a", keys=["a"], NEVER_DECODE=True) == b"x"


def test_replies_that_change_without_an_invalidation_are_not_kept(start, other):
    """The server calls neither a delivery to a consumer nor another key a change of the key that was read."""
    client, _ = start()
    entry = other.xadd("s", {"n": "first"})
    other.xgroup_create("s", "group", "0")
    assert client.xpending("s", "group")["pending"] == 0
    other.xreadgroup("group", "me", {"s": ">"})
    assert client.xpending("s", "group")["pending"] == 1
    other.xack("s", "group", entry)
    assert client.xpending("s", "group")["pending"] == 0
    other.rpush("list", 1, 2)
    other.mset({"weight:1": 1, "weight:2": 2})
    command = ("SORT_RO", "list", "BY", "weight:*")
    assert client.execute_command(*command, keys=["list"]) == [b"1", b"2"]
    other.set("weight:1", 3)
    assert client.execute_command(*command, keys=["list"]) == [b"2", b"1"]


@pytest.fixture
def reader(other):
    """A user of the server whose connections are not told what changes."""
    other.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all", "-client|tracking")
    yield {"username": "reader", "password": "secret"}
    other.execute_command("ACL", "DELUSER", "reader")


@with_each_parser
def test_a_connection_that_is_not_told_of_changes_is_closed(start, other, reader):
    """redis-py leaves it open, and the next reply that it reads is never invalidated."""
    client, guard = start(**reader)
    other.set("k", "old")
    for _ in range(3):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("k")
    assert guard.snapshot().pool.open == guard.snapshot().in_use == 0
    other.execute_command("ACL", "SETUSER", "reader", "+client|tracking")
    assert client.get("k") == client.get("k") == b"old"
    other.execute_command("ACL", "SETUSER", "reader", "-client|tracking")
    other.client_kill_filter(_type="normal", skipme=True)
    for _ in range(2):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("k")


def test_a_connection_from_before_the_guard_is_opened_anew(valkey, other, reader):
    client = redis.Redis(port=valkey.port, protocol=3, cache_config=CacheConfig(), **reader)
    other.set("k", "old")
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.get("k")
    protect(client, name="cache")
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.get("k")
    client.close()


@pytest.mark.parametrize("command", [("CLIENT", "TRACKING", "OFF"), ("CLIENT TRACKING", "OFF"), ("RESET",)])
def test_a_connection_whose_messages_are_switched_off_empties_the_cache(start, other, command):
    client, _ = start()
    other.set("k", "old")
    assert client.get("k") == b"old"
    client.execute_command(*command)
    other.set("k", "new")
    assert client.get("k") == b"new"


def test_a_key_named_like_an_option_is_kept(start, other):
    client, guard = start()
    other.set("TRACKING", "x")
    before = admitted(guard)
    assert client.get("TRACKING") == client.get("TRACKING") == b"x"
    assert admitted(guard) == before + 1


def test_a_blocking_read_of_a_stream_waits_each_time(start, other):
    client, _ = start()
    other.xadd("s", {"n": "first"})
    waiting = threading.Thread(target=client.xread, args=({"s": "$"},), kwargs={"block": 20_000})
    waiting.start()
    poll(lambda: other.info("clients")["blocked_clients"] == 1, "the thread waits")
    other.xadd("s", {"n": "second"})
    waiting.join(20)
    assert not waiting.is_alive()
    assert not client.xread({"s": "$"}, block=10)
    assert client.xread({"s": "0"}) == client.xread({"s": "0"}) != {}


@with_each_parser
def test_a_subscriber_gets_every_message(start, other):
    """Messages wait while it subscribes to more: they are for the subscriber, and no invalidations."""
    client, guard = start()
    other.set("k", "v")
    assert client.get("k") == b"v"  # by the connection that is the subscriber's next
    with client.pubsub() as subscriber:
        subscriber.subscribe("a")
        other.set("k", "w")
        for number in range(3):  # the server may see the other client before the subscriber
            poll(lambda n=number: other.publish("a", n), "the subscriber")
        poll(subscriber.connection.can_read, "the messages")
        subscriber.subscribe("b")
        poll(lambda: other.publish("b", 3), "the subscriber of both")
        subscriber.ping()
        got = []
        while len(got) < 7:
            message = subscriber.get_message(timeout=20)
            if message is not None:
                got.append((message["type"], message["data"]))
    assert got == [
        ("subscribe", 1),
        *(("message", b"%d" % number) for number in range(3)),
        ("subscribe", 2),
        ("message", b"3"),
        ("pong", b""),
    ]
    assert client.get("k") == b"w"
    assert guard.snapshot().failed == 0


def test_invalidations_that_arrive_at_once_take_time_in_proportion(start, other):
    """redis-py looks at every reply for each of them: here four seconds of work."""
    client, guard = start(guard={"timeout": 20})
    keys = [f"key:{number}" for number in range(3000)]
    other.mset(dict.fromkeys(keys, "old"))
    for key in keys:
        client.get(key)
    with Stopwatch() as alone:
        for key in keys:
            other.get(key)
    other.mset(dict.fromkeys(keys, "new"))
    with Stopwatch() as handling:
        poll(lambda: client.get(keys[-1]) == b"new", "the change", 20)
    assert handling.seconds < 2 * alone.seconds + 0.5
    assert [client.get(key) for key in keys[:3]] == [b"new"] * 3
    assert guard.snapshot().failed == 0


def test_the_index_of_kept_replies_does_not_outgrow_them(start, other, monkeypatch):
    monkeypatch.setattr(_local_cache, "_SPARE", 10)
    client, _ = start(cache_config=CacheConfig(max_size=5))
    cache = _local_cache.LocalCache.of(client.get_cache())
    other.mset({f"k{number}": "old" for number in range(100)})
    for number in range(100):
        assert client.get(f"k{number}") == b"old"
        assert len(cache._of_key) <= 2 * 5 + 10 + 1
    other.set("k99", "new")
    poll(lambda: client.get("k99") == b"new", "the change")


@pytest.mark.parametrize(
    "differs",
    [
        {"db": 1},
        {"decode_responses": True},
        {"credential_provider": redis.credentials.UsernamePasswordCredentialProvider()},
    ],
    ids=lambda differs: next(iter(differs)),
)
def test_clients_whose_replies_differ_cannot_share_a_cache(start, valkey, differs):
    cache = CacheFactory(CacheConfig()).get_cache()
    _, guard = start(cache_config=None, cache=cache)
    start(cache_config=None, cache=cache)[1].detach()
    client = redis.Redis(port=valkey.port, protocol=3, cache=cache, **differs)
    with pytest.raises(ConfigurationError, match=f"cache is used .* another {next(iter(differs))},"):
        protect(client)
    guard.detach()
    protect(client).detach()
    client.close()


def test_clients_of_one_database_share_a_cache(start, other):
    cache = CacheFactory(CacheConfig()).get_cache()
    (one, _), (two, guard) = (start(cache_config=None, cache=cache) for _ in range(2))
    other.set("k", "old")
    assert (one.get("k"), two.get("k"), admitted(guard)) == (b"old", b"old", 0)
    other.set("k", "new")
    poll(lambda: two.get("k") == b"new", "the change")
