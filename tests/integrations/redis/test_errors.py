"""What a real server's errors say about it, Valkey and Redis: each is brought about, none is scripted."""

from __future__ import annotations

import contextlib
import threading

import pytest
import redis

from guardrails import BreakerPolicy
from guardrails.testing.servers import ValkeyServer
from support.polling import poll
from support.redis_lab import RedisServer


@pytest.fixture(scope="module", params=[ValkeyServer, RedisServer], ids=["Valkey", "Redis"])
def kind(request):
    """Which program is asked."""
    return request.param


@pytest.fixture(scope="module")
def server(kind):
    """A server whose settings the tests spoil."""
    debug = ("--enable-debug-command", "yes") if kind is ValkeyServer else ()
    with kind.start(*debug, "--lua-time-limit", "100", "--rdbcompression", "no") as server:
        yield server


@pytest.fixture
def root(server):
    """An unguarded client that spoils the settings, and restores them."""
    with redis.Redis(port=server.port, socket_timeout=30) as client:
        client.set("key", "value")
        yield client
        client.flushall()


@pytest.fixture
def setting(root):
    """Sets something on the server until the end of the test."""
    before = {}

    def change(**settings):
        for word, value in settings.items():
            name = word.replace("_", "-")
            before.update(root.config_get(name))
            root.config_set(name, value)

    yield change
    for name, value in before.items():
        root.config_set(name, value)


def check(cache, server, code, work, evidence, prepare=lambda: None, **options):
    """Holds work on a warm guarded connection to an error and to what it is evidence of."""
    cache.port = server.port
    guard = cache.protect(guard={"timeout": 10}, **options)
    cache.do(lambda client: client.ping())
    prepare()
    with pytest.raises(redis.RedisError) as caught:
        cache.do(work)
    assert code in f"{type(caught.value).__name__} {getattr(caught.value, 'status_code', '')} {caught.value}"
    snapshot = guard.snapshot()
    assert (snapshot.succeeded - 1, snapshot.failed) == evidence
    assert cache.out() == 0


FAULT, ANSWER = (0, 1), (1, 0)


def get(client):
    """A read."""
    return client.get("key")


def put(client):
    """A write."""
    return client.set("key", "other")


@pytest.mark.parametrize(
    ("options", "fresh"),
    [
        ({}, False),
        ({}, True),
        ({"client_name": "shop", "db": 1}, True),
        ({"health_check_interval": 1}, False),
    ],
    ids=["kept", "new each time", "named and selected each time", "checked"],
)
def test_circuit_opens_when_every_write_is_refused(cache, server, setting, options, fresh):
    """Connecting, HELLO, CLIENT, SELECT and the pings of health checks work all the while: no evidence."""
    cache.port = server.port
    policy = BreakerPolicy(minimum_number_of_calls=10, wait_duration_in_open_state=60)
    guard = cache.protect(guard={"timeout": 10, "breaker": policy}, **options)
    setting(maxmemory="1")
    for _ in range(10):
        assert guard.state == "closed"
        with pytest.raises(redis.OutOfMemoryError):
            cache.do(put)
        if fresh:
            cache.do(lambda client: client.connection_pool.disconnect())
    assert guard.state == "open"
    assert guard.snapshot().failure_rate == 1.0


def test_out_of_memory(cache, server, setting):
    """OOM: no write is taken."""
    check(cache, server, "OutOfMemory", put, FAULT, lambda: setting(maxmemory=1))


def test_out_of_memory_among_replies(cache, server, setting):
    """OOM as one reply of several, which is not raised; a command error among them is still an answer."""
    cache.port = server.port
    guard = cache.protect(guard={"timeout": 10})

    def errors_among_replies(client):
        pipe = client.pipeline(transaction=False).get("key").lpush("key", "x").set("key", "other")
        return pipe.execute(raise_on_error=False)

    def kinds():
        return [type(reply) for reply in cache.do(errors_among_replies)]

    assert kinds() == [bytes, redis.ResponseError, bool]
    assert (guard.snapshot().succeeded, guard.snapshot().failed) == ANSWER
    setting(maxmemory=1)
    assert kinds() == [bytes, redis.OutOfMemoryError, redis.OutOfMemoryError]
    assert guard.snapshot().failed == 1


def test_no_replicas(cache, server, setting):
    """NOREPLICAS: fewer copies than the server insists on."""
    check(cache, server, "NOREPLICAS", put, FAULT, lambda: setting(min_replicas_to_write=1))


def test_failed_snapshot(cache, server, root, setting):
    """MISCONF: the last snapshot could not be written, so no write is taken."""

    def spoil():
        setting(save="3600 1000000")
        (server.home / "dump.rdb").unlink(missing_ok=True)
        (server.home / "dump.rdb" / "in the way").mkdir(parents=True)
        root.bgsave()
        poll(lambda: root.info("persistence")["rdb_last_bgsave_status"] == "err", "the snapshot failed", 20)

    try:
        check(cache, server, "MISCONF", put, FAULT, spoil)
    finally:
        (server.home / "dump.rdb" / "in the way").rmdir()
        (server.home / "dump.rdb").rmdir()
        root.bgsave()
        poll(lambda: root.info("persistence")["rdb_last_bgsave_status"] == "ok", "a snapshot worked", 20)


@pytest.mark.parametrize(("code", "work"), [("ReadOnly", put), ("MASTERDOWN", get)])
def test_orphaned_replica(cache, server, root, setting, code, work):
    """READONLY and MASTERDOWN: the server has become a replica without a master; reads may go on or not."""
    root.replicaof("127.0.0.1", 1)
    try:
        check(cache, server, code, work, FAULT, lambda: setting(replica_serve_stale_data="no"))
    finally:
        root.replicaof("NO", "ONE")


def test_busy_script(cache, server, root):
    """BUSY: a script blocks all callers."""

    def hold_up():
        with contextlib.suppress(redis.RedisError):  # it is killed in the end
            root.eval("while true do end", 0)

    endless = threading.Thread(target=hold_up)
    with redis.Redis(port=server.port, socket_timeout=30) as other:

        def is_busy():
            try:
                other.get("key")
            except redis.RedisError:
                return True

        def begin():
            endless.start()
            poll(is_busy, "the script holds the server", 20)

        try:
            check(cache, server, "BUSY", get, FAULT, begin)
        finally:
            other.script_kill()
            endless.join()


def test_too_many_clients(cache, server, setting):
    """A connection that is turned away at the gate."""
    cache.port = server.port
    guard = cache.protect(guard={"timeout": 10})
    setting(maxclients=1)
    with pytest.raises(redis.RedisError, match=r"max|closed|Connection"):
        cache.do(get)
    assert guard.snapshot().failed == 1


def test_no_slots_yet(cache, kind):
    """CLUSTERDOWN: a node of a cluster that has no slots."""
    with kind.start("--cluster-enabled", "yes") as node:
        check(cache, node, "CLUSTERDOWN", get, FAULT)


def test_lost_login(cache, server, root, setting):
    """NOAUTH on an open connection is an answer."""
    setting(requirepass="secret")
    root.auth("secret")
    work = lambda client: client.pipeline(transaction=False).execute_command("RESET").get("key").execute()
    check(cache, server, "Authentication", work, ANSWER, password="secret", protocol=2)


def test_refused_login(cache, server, root, setting):
    """A wrong password is a connection that is not there."""
    setting(requirepass="secret")
    root.auth("secret")
    cache.port = server.port
    guard = cache.protect(guard={"timeout": 10}, password="wrong")
    with pytest.raises(redis.AuthenticationError):
        cache.do(get)
    assert (guard.snapshot().succeeded, guard.snapshot().failed) == FAULT


def test_forbidden_command(cache, server, root):
    """NOPERM: the server is healthy and refuses the command."""
    root.acl_setuser(
        "reader", enabled=True, nopass=True, keys=["*"], commands=["+get", "+ping", "+hello", "+client"]
    )
    check(cache, server, "NoPermission", put, ANSWER, username="reader", password="any")
    root.acl_deluser("reader")


@pytest.mark.parametrize(
    ("code", "work"),
    [
        ("WRONGTYPE", lambda client: client.lpush("key", "x")),
        ("NoScript", lambda client: client.evalsha("0" * 40, 0)),
        ("NONSENSE", lambda client: client.pipeline().execute_command("NONSENSE").get("key").execute()),
        ("unknown command", lambda client: client.execute_command("NONSENSE")),
        ("wrong number", lambda client: client.execute_command("GET")),
    ],
    ids=["WRONGTYPE", "NOSCRIPT", "EXECABORT", "unknown", "arguments"],
)
def test_a_command_error_is_an_answer(cache, server, root, code, work):
    """An error about the command proves the server alive."""
    check(cache, server, code, work, ANSWER)
