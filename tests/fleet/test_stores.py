"""The stores of leases: one rule in both, hostile contents, faults of the server and of the file."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import sqlite3
import time
from pathlib import Path
from zlib import crc32

import pytest
import redis

from guardrails.errors import ConfigurationError
from guardrails.fleet import _lease
from guardrails.fleet._orders import OrdersRequest
from guardrails.fleet._records import EPOCH, GRANTED, LEASE, Record, Reply, Request
from guardrails.fleet._redis_store import SCRIPT, RedisStore, _words
from guardrails.fleet._rulings import VerdictRequest
from guardrails.fleet._sqlite_store import SQLiteStore
from guardrails.fleet._stores import Ask, StoreError
from guardrails.testing.servers import ValkeyServer
from support.polling import wait_until

KEY = "guardrails:{shop}:budget2:db"


def shard_of(worker):
    return str(crc32(worker.encode()) % 32)


def shard_key(worker):
    """The key of the hash with a worker's record."""
    return f"guardrails:{{shop}}:budget2.{shard_of(worker)}:db"


def texts(client):
    """The texts that the store has of the budget, as one mapping."""
    fields = {EPOCH: client.hget(KEY, EPOCH)}
    for key in client.scan_iter(match="guardrails:{shop}:budget2.*:db"):
        fields |= client.hgetall(key)
    return fields


def request(worker="w1", seq=1, **values):
    settings = {
        "instance": "1a", "fresh": seq == 1, "has": 0, "cap": 0, "safe": 0, "wants": 1, "minimum": 1,
        "most": 20, "budget": 20,
    }  # fmt: skip
    return Request(worker, seq=seq, **(settings | values))


@pytest.fixture
def client(valkey):
    with redis.Redis(port=valkey.port, decode_responses=True) as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture(params=["redis", "sqlite"])
def store(request, tmp_path):
    """A store of each kind, empty."""
    if request.param == "sqlite":
        yield SQLiteStore(str(tmp_path / "fleet.db"), "shop")
        return
    valkey, client = request.getfixturevalue("valkey"), request.getfixturevalue("client")
    assert client.dbsize() == 0
    store = RedisStore(f"redis://127.0.0.1:{valkey.port}/0", "shop")
    yield store
    store.close()


# --- one rule in two languages ---------------------------------------------------------------------


def random_request(draw, known):
    worker = f"w{draw.randrange(6)}"
    own = known.get(worker, {"seq": 0, "instance": "aa"})
    known[worker] = own
    if draw.random() < 0.1:
        own["instance"] = draw.choice(["aa", "bb"])
    own["seq"] += draw.choice([1, 1, 1, 1, 0, -1, 3])
    own["seq"] = max(0, own["seq"])
    has = draw.choice([0, 0, 1, 3, 8, 15])
    return Request(
        worker, own["instance"], own["seq"], draw.random() < 0.3, has, has + draw.choice([0, 0, 2, 5]),
        draw.choice([0, 2, 5, 13]), draw.choice([0, 1, 4, 9, 40]), draw.choice([1, 1, 1, 2, 5]),
        draw.choice([1, 3, 10, 50]), draw.choice([40, 40, 40, 40, 3, 25]), draw.choice(["", "host-1"]),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_lua_and_python_answer_and_write_the_same(client, seed):
    """Both get the same requests and times; a sum in Redis that is wrong would make the store learn."""
    lines = SCRIPT.replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}")
    run = client.register_script(lines)
    draw, fields, known, now = random.Random(seed), {}, {}, 1_000_000_000
    for _ in range(300):
        step = draw.choice([1, 40, 100, 300, 900, 2500, 4000, 16000, -300, -5000])
        now += step
        if draw.random() < 0.02 and fields and step > 0:
            fields[EPOCH] = draw.choice(["", "1", "2 5 5\n", f"2 {10**15} 5", "x" * 400])
            client.hset(KEY, EPOCH, fields[EPOCH])
        asked, leaving = random_request(draw, known), draw.random() < 0.1
        words = _words(Ask("db", asked, leaving))
        values = run([KEY], [*words, now // 1000, now % 1000 * 1000])[0]
        if leaving:
            _lease.leave(fields, asked, now)
            expected = Reply(GRANTED)
        else:
            expected = _lease.renew(fields, asked, now)
        assert Reply(*values) == expected
        assert texts(client) == fields


def test_a_large_fleet_that_falls_silent_is_settled_in_several_calls_and_reserved_for_meanwhile(client):
    """One call makes some shards anew. Until all are, no more is granted than the rule grants."""
    run = client.register_script(SCRIPT.replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}"))
    table, now, behind = _lease.LeaseTable(), 1_000_000_000, 0

    def renew(worker, seq, **values):
        asked = request(worker, seq, budget=1000, most=1000, **values)
        reply = run([KEY], [*_words(Ask("db", asked)), now // 1000, now % 1000 * 1000])[0]
        return Reply(*reply), table.renew(asked, now)

    for seq in range(1, 6):
        now += 800
        for n in range(400):
            found, expected = renew(f"w{n}", seq, has=1, cap=1, safe=2 if seq > 4 else 0)
            assert found == expected
    for seq in range(1, 9):
        now += 310
        found, expected = renew("new", seq, wants=900)
    assert expected.grant >= 100
    now += 50
    for seq in range(9, 40):
        now += 1
        found, expected = renew("new", seq, wants=900)
        assert found.grant <= expected.grant
        assert not found.learning
        behind += int(client.hget(KEY, "=").split()[1]) <= now
    assert 0 < behind < 5
    assert found == expected


def test_record_reads_what_it_writes():
    fields = {}
    _lease.renew(fields, request(host="web-1"), 5)
    record = Record.read(fields["w1"])
    assert record.write() == fields["w1"]
    assert record.host == "web-1"


# --- what each store does --------------------------------------------------------------------------


def test_workers_share_a_budget(store):
    replies = [store.exchange([Ask("db", request(f"w{n}"))])[0] for n in range(3)]
    assert [(each.status, each.grant, each.learning) for each in replies] == [(GRANTED, 1, True)] * 3
    assert replies[-1].workers == 3
    view = store.read()
    assert sorted(_lease.members(view.budgets["shop", "db"], view.now)) == ["w0", "w1", "w2"]


def test_one_call_renews_several_budgets(store):
    replies = store.exchange(
        [Ask("db", request()), Ask("other", request(budget=7)), Ask("db", request("w2"))]
    )
    assert [(reply.budget, reply.workers) for reply in replies] == [(20, 1), (7, 1), (20, 2)]


def test_goodbye_is_known(store):
    store.exchange([Ask("db", request()), Ask("db", request("w2"))])
    store.exchange([Ask("db", request(seq=2), leaving=True)])
    assert store.exchange([Ask("db", request("w2", 2))])[0].workers == 1


def test_script_flush_is_not_noticed(client, valkey):
    store = RedisStore(f"redis://127.0.0.1:{valkey.port}", "shop")
    for seq in range(1, 4):
        client.script_flush()
        assert store.exchange([Ask("db", request(seq=seq))])[0].status == GRANTED
    store.close()


@pytest.mark.parametrize("kind", ["string", "list", "zset", "stream"])
def test_a_key_of_another_type_is_treated_as_absent(client, valkey, kind):
    {
        "string": lambda: client.set(KEY, b"x" * 10_000_000),
        "list": lambda: client.rpush(KEY, *range(1000)),
        "zset": lambda: client.zadd(KEY, {"w1": 1}),
        "stream": lambda: client.xadd(KEY, {"w1": 1}),
    }[kind]()
    store = RedisStore(f"redis://127.0.0.1:{valkey.port}", "shop")
    assert store.exchange([Ask("db", request(cap=3, has=3))])[0].grant == 3
    assert client.type(KEY) == "hash"
    store.close()


def hostile_values(count):
    """Pickles, numbers without an end, times in the far future, texts that almost are ours."""
    values = [
        pickle.dumps({"a": 1}),
        f"2 aa 1 0 0 9 9 9 1 9 20 {10**14} 9 9 h",
        f"2 {10**14} {10**14}" + " 7" * 9 + " | 20:7 | 1:7 | 1:7 | 20:7",
        f"2 {10**14} {10**14}",
        "9" * 200,
        "2 aa -1 0 1 1 1 1 1 1 5 1 1 h",
        b"\xff\x00",
        "",
    ]
    return [values[n % len(values)] for n in range(count)]


@pytest.mark.sampled
@pytest.mark.parametrize("huge", [0, 1, 10])
@pytest.mark.parametrize("where", ["own fields", "other fields", "members"])
def test_hostile_values_are_removed_and_everybody_keeps_what_he_has(client, valkey, where, huge):
    """In each kind of key, until the store has made its sums anew. A key of 100 MB is removed."""
    store = RedisStore(f"redis://127.0.0.1:{valkey.port}", "shop")
    names = [f"w{n}" for n in range(4)]
    for name in names:
        store.exchange([Ask("db", request(name, has=5, cap=5))])
    raw = redis.Redis(port=valkey.port)
    keys = [KEY] if where != "members" else [shard_key(name) for name in names]
    fields = client.hkeys(KEY) if where == "own fields" else names if where == "members" else []
    for key in keys:
        names_of_fields = [*fields, *(f"x{n}" for n in range(len(fields), 1000))]
        raw.hset(key, mapping=dict(zip(names_of_fields, hostile_values(1000 // len(keys)), strict=False)))
        for n in range(huge):
            raw.hset(key, f"huge{n}", b"x" * 10_000_000)
    raw.close()
    seq, until, replies = 1, time.monotonic() + 5, {}
    while not replies or any(reply.learning for reply in replies.values()):
        seq += 1
        for name in names:
            replies[name] = store.exchange([Ask("db", request(name, seq, has=5, cap=5))])[0]
            assert replies[name].status == GRANTED
            assert replies[name].grant == 5 or not replies[name].learning
        assert time.monotonic() < until
        time.sleep(0.2)
    assert {reply.grant for reply in replies.values()} <= {4, 5}, "a tenth is kept free"
    assert sorted(texts(client)) == [EPOCH, *names]
    assert sorted(client.hkeys(KEY)) == sorted([EPOCH, "=", *{shard_of(name) for name in names}])
    store.close()


def test_key_of_a_fleet_without_workers_expires(client, valkey):
    store = RedisStore(f"redis://127.0.0.1:{valkey.port}", "shop")
    store.exchange([Ask("db", request())])
    assert 0 < client.pttl(KEY) <= 60_000
    store.close()


# --- faults -----------------------------------------------------------------------------------------


def test_password_is_needed_and_never_shown(valkey):
    with ValkeyServer.start("--requirepass", "hunter2") as server:
        for url, words in [("", "login"), (":wrong@", "login"), (":hunter2@", None)]:
            store = RedisStore(f"redis://{url}127.0.0.1:{server.port}", "shop")
            if words is None:
                assert store.exchange([Ask("db", request())])[0].status == GRANTED
            else:
                with pytest.raises(StoreError, match=words) as told:
                    store.exchange([Ask("db", request())])
                assert "wrong" not in str(told.value)
                assert "hunter2" not in str(told.value)
            store.close()


def documented_rights():
    page = (Path(__file__).parents[2] / "docs/guides/fleet.md").read_text()
    rights = page.partition("An ACL user needs")[2].partition("Persistence")[0]
    return [right for text in re.findall(r"`([^`]+)`", rights) for right in text.split() if right[0] == "+"]


def set_user(server, *rules):
    with redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rules)


def use_all_of(store):
    """Renews, leaves, judges, steers and reads."""
    window = VerdictRequest("w1", "aa", 1, 0, 0, 10, 10, 0, 0, 10, 500_000, 500_000, 2000, 10_000)
    order = f"2 {time.time_ns() // 1_000_000} reset by"
    asks = [
        Ask("db", request()),
        Ask("db", request(seq=2), leaving=True),
        Ask("db", window),
        Ask("db", OrdersRequest("@", gives=True, circuit=order)),
    ]
    store.exchange(asks)
    assert store.read().verdicts


def test_an_acl_user_with_the_documented_rights_needs_no_other():
    with ValkeyServer.start() as server:
        store = RedisStore(f"redis://app:pw@127.0.0.1:{server.port}/1", "shop")
        rights = documented_rights()
        assert len(rights) > 10
        set_user(server, "~guardrails:*", *rights)
        use_all_of(store)
        store.close()


@pytest.mark.parametrize(
    "rules",
    [
        ["~guardrails:*"],
        ["~guardrails:*", "+client|setname"],
        ["~other:*", "+@all"],
        ["~*", "+@all", "-hset"],
    ],
    ids=["nothing", "no script", "other keys", "no write"],
)
def test_an_acl_user_without_a_right_is_named(rules):
    with ValkeyServer.start() as server:
        set_user(server, *rules)
        store = RedisStore(f"redis://app:pw@127.0.0.1:{server.port}", "shop")
        with pytest.raises(StoreError, match="its user lacks a right that a fleet needs"):
            store.exchange([Ask("db", request())])
        store.close()


@pytest.mark.parametrize(
    ("kind", "words", "meaning"),
    [
        ("BusyLoadingError", "Redis is loading the dataset in memory", "it loads its data"),
        ("OutOfMemoryError", "command not allowed when used memory > 'maxmemory'.", "its memory is full"),
        (
            "ResponseError",
            "MISCONF Errors writing to the AOF file",
            "it refuses writes, as it cannot save them",
        ),
        (
            "MasterNotFoundError",
            "No master found for 'ordersCluster'",
            "no sentinel in reach knows its primary",
        ),
        ("ConnectionError", "Error 111 connecting to ROOM-7:6379", "ConnectionError"),
        ("ResponseError", "unknown command LOADING", "it answers with an error"),
    ],
)
def test_the_reason_follows_from_the_kind_of_error_and_from_no_name_in_it(
    valkey, monkeypatch, kind, words, meaning
):
    error = getattr(redis.exceptions, kind, None) or getattr(redis.sentinel, kind)

    def fail(*_):
        raise error(words)

    store = RedisStore(valkey.url(), "shop")
    monkeypatch.setattr(store._client, "evalsha", fail)
    with pytest.raises(StoreError) as told:
        store.exchange([Ask("db", request())])
    assert str(told.value) == meaning
    store.close()


@pytest.mark.parametrize("url", ["redis://:hunter2@host:port/0", "http://:hunter2@x", "redis://x?db=hunter2"])
def test_a_wrong_url_is_refused_without_its_text(url):
    with pytest.raises(ConfigurationError, match="url must be one that redis-py can read") as told:
        RedisStore(url, "shop")
    assert "hunter2" not in str(told.value)


def test_a_read_only_replica_and_a_cluster_are_named(valkey):
    with ValkeyServer.start() as replica:
        with redis.Redis(port=replica.port) as client:
            client.replicaof("127.0.0.1", valkey.port)
        store = RedisStore(f"redis://127.0.0.1:{replica.port}", "shop")
        with pytest.raises(StoreError, match="it is a read-only replica"):
            wait_until(lambda: store.exchange([Ask("db", request())]) and False)
        store.close()
    with ValkeyServer.start("--cluster-enabled", "yes") as cluster:
        store = RedisStore(f"redis://127.0.0.1:{cluster.port}", "shop")
        with pytest.raises(StoreError, match="it is a cluster"):
            store.exchange([Ask("db", request())])
        store.close()


def test_a_frozen_server_costs_a_timeout_and_its_late_answer_is_dropped():
    with ValkeyServer.start() as server:
        store = RedisStore(f"redis://127.0.0.1:{server.port}", "shop")
        assert store.exchange([Ask("db", request())])[0].status == GRANTED
        server.freeze()
        began = time.monotonic()
        with pytest.raises(StoreError, match="TimeoutError"):
            store.exchange([Ask("db", request(seq=2))])
        assert time.monotonic() - began < 3
        server.thaw()
        assert store.exchange([Ask("db", request(seq=3))])[0].status == GRANTED
        store.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "unable to open"),
        (lambda path: path.write_bytes(b"no database" * 1000), "not a database"),
    ],
    ids=["directory", "another file"],
)
def test_a_file_that_is_no_database_is_an_error_and_stays(tmp_path, make, words):
    make(tmp_path / "fleet.db")
    with pytest.raises(StoreError, match=words) as told:
        SQLiteStore(str(tmp_path / "fleet.db"), "shop").exchange([Ask("db", request())])
    assert str(tmp_path) not in str(told.value)


def test_a_full_disk_is_an_error_and_the_next_call_works(tmp_path, monkeypatch):
    store = SQLiteStore(str(tmp_path / "fleet.db"), "shop")
    store.exchange([Ask("db", request())])
    open_file = SQLiteStore._open

    def full(self):
        file = open_file(self)
        pages = file.execute("pragma page_count").fetchone()[0]
        file.execute(f"pragma max_page_count = {pages}")
        return file

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteStore, "_open", full)
        with pytest.raises(StoreError, match="full"):
            store.exchange([Ask(f"db{n}", request(host="h" * 100)) for n in range(100)])
    assert store.exchange([Ask("db", request(seq=2))])[0].status == GRANTED
    assert list(store.read().budgets) == [("shop", "db")], "the transaction that failed left nothing"


def _write_up_to(path, size, found):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = SQLiteStore(path, "shop")
    try:
        for n in range(1000):
            store.exchange([Ask(f"db{n}", request(host="h" * 100))])
    except StoreError as error:
        found.put(str(error))


def test_a_file_that_may_not_grow_is_an_error_and_is_whole(tmp_path):
    """The system refuses to write more, as on a full disk; another process goes on with what there is."""
    path, context = str(tmp_path / "fleet.db"), multiprocessing.get_context("spawn")
    found = context.Queue()
    child = context.Process(target=_write_up_to, args=(path, 64 * 1024, found), daemon=True)
    child.start()
    words = found.get(timeout=60)
    child.join(20)
    assert path not in words
    store = SQLiteStore(path, "shop")
    assert store.exchange([Ask("db0", request("w2", host="h"))])[0].workers == 2
    with sqlite3.connect(path) as file:
        assert file.execute("pragma integrity_check").fetchall() == [("ok",)]
    file.close()


def test_a_file_that_was_removed_is_made_anew(tmp_path):
    path = tmp_path / "fleet.db"
    store = SQLiteStore(str(path), "shop")
    store.exchange([Ask("db", request())])
    path.unlink()
    reply = store.exchange([Ask("db", request(seq=2, has=4, cap=4))])[0]
    assert (reply.grant, reply.learning) == (4, True)


def _hammer(path, number):
    store, seq = SQLiteStore(path, "shop"), 0
    while True:
        seq += 1
        with contextlib.suppress(StoreError):  # the others may hold the file's lock for too long
            store.exchange([Ask("db", request(f"w{number}", seq))])


def _is_granted(store):
    with contextlib.suppress(StoreError):  # locked by one that lives
        return store.exchange([Ask("db", request("mine", time.monotonic_ns() // 1000))])[0].status == GRANTED
    return False


def _workers_known(store):
    with contextlib.suppress(StoreError):  # there is no file yet, or one of them writes
        return len([name for name in store.read().budgets.get(("shop", "db"), {}) if name != "@"])
    return 0


def test_workers_that_are_killed_while_they_write_leave_a_file_that_works(tmp_path):
    """The kernel frees the locks of a process that was killed; its half transaction is rolled back."""
    path = str(tmp_path / "fleet.db")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_hammer, args=(path, n), daemon=True) for n in range(3)]
    for worker in workers:
        worker.start()
    store = SQLiteStore(path, "shop")
    try:
        wait_until(lambda: _workers_known(store) == 3)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join(10)
            wait_until(lambda: _is_granted(store))
    finally:
        for worker in workers:
            worker.kill()
            worker.join(10)
    with sqlite3.connect(path) as file:
        assert file.execute("pragma integrity_check").fetchall() == [("ok",)]
    file.close()


def test_a_file_that_is_locked_is_an_error_soon(tmp_path):
    path = str(tmp_path / "fleet.db")
    store = SQLiteStore(path, "shop")
    store.exchange([Ask("db", request())])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin exclusive")
    try:
        with pytest.raises(StoreError, match="locked"):
            store.exchange([Ask("db", request(seq=2))])
    finally:
        other.close()
    assert store.exchange([Ask("db", request(seq=3))])[0].status == GRANTED


def test_lease_is_counted_on_the_machines_clock(tmp_path, caplog):
    """Times of an earlier start of the machine are in the future, and treated as absent."""
    caplog.set_level(logging.WARNING)
    path = str(tmp_path / "fleet.db")
    store = SQLiteStore(path, "shop")
    store.exchange([Ask("db", request())])
    with sqlite3.connect(path) as file:
        later = time.monotonic_ns() // 1_000_000 + 10**9
        record = f"2 aa 1 0 0 19 1 19 1 20 20 {later} 19 19 h"
        file.execute("update guardrails_fleet_2 set value = ? where field = 'w1'", (record,))
        file.execute(
            "update guardrails_fleet_2 set value = ? where field = '@'", (f"2 {later} {later + LEASE}",)
        )
    file.close()
    reply = store.exchange([Ask("db", request("w2"))])[0]
    assert (reply.workers, reply.grant, reply.learning) == (1, 1, True)
