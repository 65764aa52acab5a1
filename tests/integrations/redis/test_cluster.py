"""A real cluster of three primaries and three replicas, and guarded clients of it, in threads and tasks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import time

import pytest
import redis
import redis.cluster
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.backoff import NoBackoff
from redis.retry import Retry

from guardrails import (
    Adaptive,
    BreakerPolicy,
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    DeadlineSpentError,
    deadline,
    guarded,
    pool_status,
    protect,
)
from guardrails.integrations.asgi import GuardrailsMiddleware as ASGIMiddleware
from guardrails.integrations.wsgi import GuardrailsMiddleware as WSGIMiddleware
from guardrails.testing.cluster import ValkeyCluster
from support import asgi_client, wsgi_client
from support.cluster_lab import FLAVOURS, KEYS, AsyncCluster, SyncCluster, keys_of, percentile, value_of
from support.lateness import ROOM
from support.polling import poll
from support.redis_lab import frozen

OPEN_WAIT = 0.5
PROMPT = BreakerPolicy(consecutive_failures=3, wait_duration_in_open_state=OPEN_WAIT, open_jitter=0)
"""A circuit that opens after three failures in a row."""

ENDED = {"CallTimeoutError", "CircuitOpenError", "ConnectionError", "ok"}
"""What a call on a node that fails may come to."""


@pytest.fixture(scope="module")
def healthy():
    """A cluster that no test changes for good."""
    with ValkeyCluster.start() as cluster:
        yield cluster


@pytest.fixture
def fragile():
    """A cluster for one test."""
    with ValkeyCluster.start() as cluster:
        yield cluster


@pytest.fixture(params=FLAVOURS, ids=["sync", "async"])
def kind(request):
    return request.param


@pytest.fixture
def lab(kind, healthy):
    return kind(healthy)


def both(work):
    """Makes of a generator what runs on either kind of client: ``yield`` makes a call and gets its result."""

    def run(client, guard):
        steps = work(client, guard)
        return _in_task(steps) if isinstance(client, AsyncRedisCluster) else _in_thread(steps)

    return run


def _in_thread(steps):
    go, given = steps.send, None
    with contextlib.suppress(StopIteration):
        while True:
            make = go(given)
            try:
                go, given = steps.send, make()
            except Exception as error:
                go, given = steps.throw, error


async def _in_task(steps):
    go, given = steps.send, None
    try:
        while True:
            make = go(given)
            try:
                made = make()
                go, given = steps.send, await made if inspect.isawaitable(made) else made
            except Exception as error:
                go, given = steps.throw, error
    except StopIteration:
        return


def part_of(guard, node):
    return next(part for part in guard.compartments if part.name == node.name)


# --- a node that fails ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (SyncCluster, "freeze"),
        pytest.param(AsyncCluster, "kill", marks=pytest.mark.slow),
        pytest.param(SyncCluster, "kill", marks=pytest.mark.slow),
        pytest.param(AsyncCluster, "freeze", marks=pytest.mark.slow),
    ],
)
def test_a_dead_node_refuses_its_own_keys_only_and_its_replica_takes_over(kind, fragile, fault):
    victim, heir = fragile.nodes[0], fragile.nodes[3]
    mine = keys_of(victim)
    others = set(KEYS) - set(mine)
    with kind(fragile).load(name="shards", timeout=1.0, breaker=PROMPT) as load:
        begin = time.monotonic()
        time.sleep(1.0)
        fault_at = time.monotonic()
        getattr(victim, fault)()
        fragile.await_primary(heir)
        promoted = time.monotonic()
        time.sleep(OPEN_WAIT + 1.0)
        healed = time.monotonic()
        time.sleep(0.5)
    assert set(load.outcomes(keys=others)) == {"ok"}
    assert set(load.outcomes(keys=mine)) <= ENDED
    before, during = load.between(begin, fault_at), load.between(fault_at, healed, others)
    assert percentile(during, 0.99) <= 2 * percentile(before, 0.99) + 0.5  # less than one wait for the victim
    away = load.outcomes(fault_at, promoted, mine)
    assert away["CircuitOpenError"] > away["CallTimeoutError"] + away["ConnectionError"]
    late = [call for call in load.between(promoted, healed + 9, mine) if call[3] != "ok"]
    assert not late or late[-1][0] < promoted + OPEN_WAIT + 1 + ROOM
    assert load.outcomes(begin=healed)["ok"] > 0


def phases_of(load, victim, others, count):
    """Times of the calls on other nodes' keys while a node works and while it is frozen, in turn.

    The phases alternate, so that whatever else slows the machine down is in both.
    """
    calls = {"before": [], "during": []}
    for _ in range(count):
        begin = time.monotonic()
        time.sleep(1.5)
        fault_at = time.monotonic()
        victim.freeze()
        time.sleep(1.5)
        end = time.monotonic()
        victim.thaw()
        calls["before"] += load.between(begin, fault_at, others)
        calls["during"] += load.between(fault_at, end, others)
        time.sleep(OPEN_WAIT + 1.0)  # its circuit closes again
    return calls["before"], calls["during"]


def keeps_pace(before, during):
    """True if half of the calls, and 99 % of them, take at most twice as long as before."""
    return all(
        percentile(during, share) <= 2 * percentile(before, share) + room
        for share, room in ((0.5, 0.005), (0.99, 0.02))
    )


@pytest.mark.slow  # ten phases or more
def test_the_other_nodes_keys_are_as_fast_while_one_is_frozen(kind):
    """A caller that had to look for the topology, or to wait for a lock, would be later each time."""
    with ValkeyCluster.start(node_timeout=120.0) as cluster:  # no replica is promoted meanwhile
        victim = cluster.nodes[0]
        others = set(KEYS) - set(keys_of(victim))
        with kind(cluster).load(name="shards", timeout=0.5, breaker=PROMPT) as load:
            time.sleep(0.5)
            for _ in range(3):  # a busy machine may be late once, also in only one of the phases
                before, during = phases_of(load, victim, others, 3)
                if keeps_pace(before, during):
                    break
        with kind(cluster, socket_timeout=0.5).load(guarded=False) as bare:
            time.sleep(0.5)
            bare_before, bare_during = phases_of(bare, victim, others, 2)
    assert keeps_pace(before, during), (percentile(before, 0.99), percentile(during, 0.99))
    assert {call[3] for call in before + during} == {"ok"}
    # Callers that wait for the frozen node make no other calls: the share of the calls that are left.
    assert len(during) / len(before) > 3 * len(bare_during) / len(bare_before)
    print(
        f"p99 {percentile(before, 0.99) * 1e3:.1f} ms, {percentile(during, 0.99) * 1e3:.1f} ms; "
        f"calls {len(before)}, {len(during)}; without a guard {len(bare_before)}, {len(bare_during)}"
    )


@pytest.mark.slow  # nine calls that time out, and two changes of a cluster
def test_the_edge_refuses_requests_while_no_primary_answers(kind):
    """No call is made to a replica, so its circuit says nothing."""
    with ValkeyCluster.start(node_timeout=120.0) as cluster:
        keys = [keys_of(node)[0] for node in cluster.nodes[:3]]

        @both
        def work(client, guard):
            if kind.is_async:
                app = ASGIMiddleware(asgi_client.fine, requires=[guard])
                ask = functools.partial(asgi_client.serve, app)
            else:
                app = WSGIMiddleware(wsgi_client.fine, requires=[guard])
                ask = functools.partial(wsgi_client.ask, app)
            for key in keys:
                yield lambda key=key: client.set(key, value_of(key))
            for node, key in zip(cluster.nodes[:3], keys, strict=True):
                assert (yield ask).status == 200
                node.freeze()
                limit = time.monotonic() + 20
                with pytest.raises(CircuitOpenError):  # a look-up may time out as well, and is no failure
                    while time.monotonic() < limit:
                        with contextlib.suppress(CallTimeoutError):
                            yield lambda key=key: client.get(key)
            refused = yield ask
            assert refused.status == 503
            assert 1 <= int(refused.headers["retry-after"]) <= 120
            for node in cluster.nodes[:3]:
                node.thaw()
            cluster.await_healthy()
            cluster.promote(cluster.nodes[3])
            limit = time.monotonic() + 20  # before a circuit admits a probe
            while (yield ask).status != 200:
                assert time.monotonic() < limit, "a refused request looks for the new primary"
                yield lambda: asyncio.sleep(0.05) if kind.is_async else time.sleep(0.05)

        policy = BreakerPolicy(consecutive_failures=3, wait_duration_in_open_state=60)
        kind(cluster).do(work, timeout=0.3, breaker=policy)


@pytest.mark.sampled(1)
def test_a_replica_that_is_promoted_on_purpose_costs_no_call(kind, fragile):
    with kind(fragile).load(name="shards", timeout=2.0, breaker=PROMPT) as load:
        time.sleep(0.3)
        fragile.promote(fragile.nodes[3])
        time.sleep(1.0)
    assert set(load.outcomes()) == {"ok"}
    assert {part.state for part in load.guard.compartments} <= {"closed"}


@pytest.mark.sampled(1)
def test_slots_that_move_under_load_cost_no_call(kind, fragile):
    source, target = fragile.nodes[:2]
    with kind(fragile).load(name="shards", timeout=2.0, breaker=PROMPT) as load:
        for key in keys_of(source)[:4]:
            slot = fragile.slot(key)
            fragile.begin_move(slot, source, target)
            time.sleep(0.05)
            fragile.move_key(key, source, target)
            time.sleep(0.1)  # its callers are redirected with ASK
            fragile.end_move(slot, target)
        time.sleep(0.5)
    assert set(load.outcomes()) == {"ok"}
    assert sum(part.snapshot().failed for part in load.guard.compartments) == 0


@pytest.mark.sampled(1)
def test_a_node_unknown_before_gets_the_keys_that_move_to_it(kind):
    """redis-py raises an AttributeError: its issue 3835."""
    with ValkeyCluster.start(replicas=0) as cluster:
        source = cluster.nodes[0]
        key = keys_of(source)[0]
        slot = cluster.slot(key)

        @both
        def work(client, guard):
            yield lambda: client.set(key, value_of(key))
            new = cluster.add_node()
            cluster.begin_move(slot, source, new)
            cluster.move_key(key, source, new)
            assert (yield lambda: client.get(key)) == value_of(key)
            cluster.end_move(slot, new)
            assert (yield lambda: client.get(key)) == value_of(key)
            assert part_of(guard, new).snapshot().succeeded >= 2

        lab = kind(cluster)
        lab.do(work)


@pytest.mark.slow  # ten thousand calls
@pytest.mark.timeout(300)
def test_no_reply_is_foreign_in_ten_thousand(kind, fragile):
    victim = fragile.nodes[0]

    def read(client, key):
        pipe = client.pipeline()
        for each in (key, KEYS[0], KEYS[1]):
            pipe.get(each)
        if kind.is_async:

            async def execute():
                one, two, three = await pipe.execute()
                return one if (two, three) == (value_of(KEYS[0]), value_of(KEYS[1])) else b"foreign"

            return execute()
        one, two, three = pipe.execute()
        return one if (two, three) == (value_of(KEYS[0]), value_of(KEYS[1])) else b"foreign"

    with kind(fragile).load(read, name="shards", timeout=0.1, breaker=PROMPT) as load:
        limit = time.monotonic() + 200
        while (len(load.calls) < 10_000 or load.outcomes()["ok"] <= 1000) and time.monotonic() < limit:
            victim.freeze()
            time.sleep(0.2)  # less than the cluster's patience: calls are stopped in the middle of a reply
            victim.thaw()
            time.sleep(0.3)
    assert len(load.calls) >= 10_000
    assert load.outcomes()["foreign"] == 0
    assert load.outcomes()["ok"] > 1000
    # A pipeline whose time is over before its second node was asked does not ask it.
    assert set(load.outcomes()) <= ENDED | {"TimeoutError", "DeadlineSpentError"}


# --- deadlines -----------------------------------------------------------------------------------


def test_a_call_on_a_frozen_node_costs_its_timeout_once(lab, healthy):
    victim = healthy.nodes[1]
    key = keys_of(victim)[0]

    @both
    def work(client, guard):
        yield lambda: client.set(key, value_of(key))
        with frozen(victim):
            start = time.monotonic()
            with pytest.raises(CallTimeoutError) as caught:
                yield lambda: client.get(key)
            assert time.monotonic() - start < 0.3 + ROOM
            start = time.monotonic()
            with pytest.raises((CallTimeoutError, DeadlineSpentError)), deadline(0.1):
                yield lambda: client.get(key)
            assert time.monotonic() - start < 0.1 + ROOM
            pipe = client.pipeline()
            pipe.get(key)
            pipe.get("elsewhere:1")
            start = time.monotonic()
            with pytest.raises(CallTimeoutError):
                yield pipe.execute
            assert time.monotonic() - start < 0.3 + ROOM
        assert caught.value.compartment == victim.name

    lab.do(work, timeout=0.3)


def test_clusterdown_ends_with_the_deadline_and_is_no_evidence(kind):
    with ValkeyCluster.start(replicas=0, options=("--cluster-require-full-coverage", "yes")) as cluster:
        key = keys_of(cluster.nodes[1])[0]

        @both
        def work(client, guard):
            yield lambda: client.set(key, value_of(key))
            slot = next(slot for slot in range(100) if slot != cluster.slot(key))
            cluster.nodes[0].ask("CLUSTER", "DELSLOTS", slot)
            for node in cluster.nodes[1:]:
                node.ask("CLUSTER", "DELSLOTS", slot)
            part = part_of(guard, cluster.nodes[1])
            limit = time.monotonic() + 20
            while time.monotonic() < limit:
                start = time.monotonic()
                try:
                    yield lambda: client.get(key)
                except (redis.exceptions.ClusterDownError, CallTimeoutError, redis.RedisError) as error:
                    took, down = time.monotonic() - start, error
                    break
            assert isinstance(down, (redis.exceptions.ClusterDownError, CallTimeoutError)), down
            assert took < 0.4 + ROOM
            with deadline(0.1):
                start = time.monotonic()
                with pytest.raises((redis.exceptions.ClusterDownError, CallTimeoutError)):
                    yield lambda: client.get(key)
                assert time.monotonic() - start < 0.1 + ROOM
            assert part.snapshot().failed == 0
            assert part.state == "closed"

        lab = kind(cluster)
        lab.do(work, timeout=0.4, breaker=PROMPT)


# --- work ----------------------------------------------------------------------------------------


def test_commands_pipelines_and_transactions_answer_as_before(lab, healthy):
    @both
    def work(client, guard):
        for key in KEYS:
            yield lambda key=key: client.set(key, value_of(key))
        pipe = client.pipeline()
        for key in KEYS:
            pipe.get(key)
        assert (yield pipe.execute) == list(map(value_of, KEYS))
        transaction = client.pipeline(transaction=True)
        transaction.set("{t}:1", "one").get("{t}:1")
        assert (yield transaction.execute)[1] == b"one"
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            yield lambda: client.lpush("{t}:1", "x")
        assert (yield lambda: client.mget_nonatomic(KEYS)) == list(map(value_of, KEYS))
        assert (yield lambda: client.ping(target_nodes="all")) is True
        snapshots = [part.snapshot() for part in guard.compartments]
        assert sum(each.failed for each in snapshots) == 0
        assert sum(each.succeeded for each in snapshots) > len(KEYS)
        pool = guard.snapshot().pool
        assert (pool.in_use, pool.open > 0, pool.capacity) == (0, True, 600)
        assert pool_status(client).in_use == 0
        assert "0/600 busy" in repr(guard)

    lab.do(work)


def test_watched_keys_that_changed_are_no_failure(healthy):
    with SyncCluster(healthy).client(name="shards") as client:
        client.set("{w}:1", "a")
        with client.pipeline(transaction=True) as pipe:
            pipe.watch("{w}:1")
            client.set("{w}:1", "b")
            pipe.multi()
            pipe.get("{w}:1")
            with pytest.raises(redis.WatchError):
                pipe.execute()
        with client.pipeline(transaction=True) as pipe:  # given up: UNWATCH, and the slot is back
            pipe.watch("{w}:1")
            assert pipe.get("{w}:1") == b"b"


def test_blocking_commands_wait_for_their_own_time(lab):
    @both
    def work(client, guard):
        start = time.monotonic()
        assert (yield lambda: client.blpop(["{b}:queue"], timeout=1)) is None
        assert time.monotonic() - start >= 0.9
        assert sum(part.snapshot().slow for part in guard.compartments) == 0

    lab.do(work, timeout=0.3)


def test_reads_from_replicas_are_the_replicas_work(kind, healthy):
    strategy = redis.cluster.LoadBalancingStrategy.ROUND_ROBIN_REPLICAS
    key = keys_of(healthy.nodes[0])[0]

    @both
    def work(client, guard):
        yield lambda: client.set(key, value_of(key))
        limit = time.monotonic() + 20
        while (yield lambda: client.get(key)) != value_of(key):
            assert time.monotonic() < limit, "the replica does not follow"
        counts = {part.name: part.snapshot().succeeded for part in guard.compartments}
        assert counts[healthy.nodes[3].name] >= 1
        victim = healthy.nodes[3]
        with frozen(victim):
            with pytest.raises(CallTimeoutError):
                yield lambda: client.get(key)
            yield lambda: client.set(key, value_of(key))  # the primary works

    kind(healthy, load_balancing_strategy=strategy).do(work, timeout=0.3)


def test_locks_are_released_past_an_open_circuit(healthy):
    with SyncCluster(healthy).client(name="shards") as client:
        guard = protect_guard(client)
        lock = client.lock("{l}:lock", timeout=60)
        assert lock.acquire()
        guard.force_open()
        lock.release()
        guard.reset()
        assert client.get("{l}:lock") is None


def test_tasks_watch_subscribe_and_lock(healthy):
    """redis-py's asyncio nodes give their connections to these by hand."""

    async def work(client, guard):
        await client.set("{w}:2", "a")
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch("{w}:2")
            assert await pipe.get("{w}:2") == b"a"
            pipe.multi()
            pipe.set("{w}:2", "b")
            assert await pipe.execute() == [True]
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch("{w}:2")
            await client.set("{w}:2", "c")
            pipe.multi()
            pipe.get("{w}:2")
            with pytest.raises(redis.WatchError):
                await pipe.execute()
        for sharded in (False, True):
            pubsub = client.pubsub()
            await (pubsub.ssubscribe if sharded else pubsub.subscribe)("{s}:tasks")
            read = pubsub.get_sharded_message if sharded else pubsub.get_message
            while await read(timeout=0.1) is None:
                pass
            await asyncio.sleep(0.5)  # longer than the guard's timeout
            await (client.spublish if sharded else client.publish)("{s}:tasks", "hello")
            while (message := await read(timeout=0.1)) is None:
                pass
            assert message["data"] == b"hello"
            await pubsub.aclose()
        lock = client.lock("{l}:tasks", timeout=60)
        assert await lock.acquire()
        guard.force_open()
        await lock.release()
        guard.reset()
        assert await client.get("{l}:tasks") is None
        assert sum(part.snapshot().failed + part.snapshot().slow for part in guard.compartments) == 0
        assert sum(part.snapshot().succeeded for part in guard.compartments) > 10

    async def within_a_minute(client, guard):
        async with asyncio.timeout(60):
            await work(client, guard)

    AsyncCluster(healthy).do(within_a_minute, timeout=0.3)


def test_a_transaction_on_a_frozen_node_costs_its_timeout(lab, healthy):
    victim = healthy.nodes[1]
    key = keys_of(victim)[0]

    @both
    def work(client, guard):
        yield lambda: client.set(key, value_of(key))
        pipe = client.pipeline(transaction=True)
        pipe.get(key)
        with frozen(victim):
            start = time.monotonic()
            with pytest.raises(CallTimeoutError):
                yield pipe.execute
            yield pipe.reset
            assert time.monotonic() - start < 0.6 + ROOM
        assert (yield lambda: client.get(key)) == value_of(key)

    lab.do(work, timeout=0.3)


def protect_guard(client):
    return type(client)._guardrails


@pytest.mark.parametrize("sharded", [False, True], ids=["plain", "sharded"])
def test_subscribers_hold_a_slot_of_their_node_and_are_never_slow(healthy, sharded):
    with SyncCluster(healthy).client(name="shards", timeout=0.3) as client:
        guard = protect_guard(client)
        pubsub = client.pubsub()
        (pubsub.ssubscribe if sharded else pubsub.subscribe)("{s}:news")
        read = pubsub.get_sharded_message if sharded else pubsub.get_message
        limit = time.monotonic() + 20
        while (read(timeout=0.1) or {}).get("type") not in {"subscribe", "ssubscribe"}:
            assert time.monotonic() < limit
        assert "1/600 busy" in repr(guard)
        time.sleep(0.5)  # longer than the guard's timeout
        (client.spublish if sharded else client.publish)("{s}:news", "hello")
        while (message := read(timeout=0.1)) is None:
            assert time.monotonic() < limit
        assert message["data"] == b"hello"
        pubsub.close()
        assert "0/600 busy" in repr(guard)
        assert sum(part.snapshot().failed + part.snapshot().slow for part in guard.compartments) == 0


def test_redis_py_has_the_names_that_are_looked_for():
    """A release of redis-py that renames them must be looked at."""
    assert "connection" in redis.cluster.RedisCluster._execute_command.__code__.co_varnames
    for name in ("initialize", "create_redis_node", "nodes_cache", "slots_cache", "remap_host_port"):
        assert name in inspect.getsource(redis.cluster.NodesManager)
    for name in ("set_nodes", "initialize", "acquire_connection", "release", '"ASKING"'):
        assert name in inspect.getsource(redis.asyncio.cluster)


def test_a_connection_that_a_redirected_command_did_not_get_is_not_given_back_twice(healthy):
    """redis-py gives back the connection of the node that has redirected it, which others may use by then."""
    source, target = healthy.nodes[0], healthy.nodes[1]
    key = keys_of(source)[0]
    with SyncCluster(healthy).client(name="shards") as client:
        guard = protect_guard(client)
        client.set(key, value_of(key))
        slot = client.keyslot(key)
        wrong = client.get_node(node_name=target.name)
        client.nodes_manager.slots_cache[slot] = [wrong]  # it answers MOVED
        gate = part_of(guard, source).call_settings.gates[0]
        tickets = []  # and the right node has no slot
        poll(lambda: len(tickets) == 100 or tickets.append(gate.check_out_now()), "every slot is taken", 20)
        with pytest.raises(BulkheadFullError):
            client.get(key)
        for ticket in tickets:
            gate.check_in(ticket)
        for node in client.get_nodes():
            waiting = node.redis_connection.connection_pool._available_connections
            assert len(waiting) == len(set(map(id, waiting)))
            assert {connection.port for connection in waiting} <= {node.port}
        assert client.get(key) == value_of(key)


# --- settings ------------------------------------------------------------------------------------


def test_each_node_has_its_own_slots(lab, healthy):
    key = keys_of(healthy.nodes[0])[0]

    @both
    def work(client, guard):
        yield lambda: client.set(key, value_of(key))
        part = part_of(guard, healthy.nodes[0])
        assert part.snapshot().max_concurrent_calls == 3
        assert guard.snapshot().max_concurrent_calls == 18
        tickets = []
        limit = time.monotonic() + 20
        while len(tickets) < 3:  # a look-up of the topology may have one of them for a moment
            assert time.monotonic() < limit
            with contextlib.suppress(BulkheadFullError):
                tickets.append(part.call_settings.gates[0].check_out_now())
            yield lambda: asyncio.sleep(0.01) if lab.is_async else time.sleep(0.01)
        with pytest.raises(BulkheadFullError):
            yield lambda: client.get(key)
        yield lambda: client.set(keys_of(healthy.nodes[1])[0], "x")
        for ticket in tickets:
            part.call_settings.gates[0].check_in(ticket)
        assert (yield lambda: client.get(key)) == value_of(key)

    lab.do(work, max_concurrent_calls=3)


def test_a_timeout_of_a_function_counts_for_all_nodes(lab, healthy):
    victim = healthy.nodes[2]
    key = keys_of(victim)[0]

    @both
    def work(client, guard):
        yield lambda: client.set(key, value_of(key))

        if isinstance(client, AsyncRedisCluster):

            @guarded(guard, timeout=0.3)
            async def read():
                return await client.get(key)
        else:

            @guarded(guard, timeout=0.3)
            def read():
                return client.get(key)

        assert (yield read) == value_of(key)
        with frozen(victim):
            start = time.monotonic()
            with pytest.raises((CallTimeoutError, DeadlineSpentError)):
                yield read
            assert time.monotonic() - start < 0.3 + ROOM

    lab.do(work, timeout=20)


def test_shadow_lets_everything_run(lab, healthy):
    key = keys_of(healthy.nodes[0])[0]

    @both
    def work(client, guard):
        guard.set_mode("shadow")
        yield lambda: client.set(key, value_of(key))
        guard.force_open()
        assert (yield lambda: client.get(key)) == value_of(key)
        assert client.retry.get_retries() == 10

    lab.do(work)


def test_retries_of_ones_own_are_kept_and_the_default_is_off(healthy):
    own = Retry(NoBackoff(), 2)
    lab = SyncCluster(healthy, retry=own)
    with lab.client(name="shards") as client:
        assert client.retry is own
    with SyncCluster(healthy).client(name="shards") as client:
        assert client.retry.get_retries() == 0


def test_detaching_restores_the_client(lab, healthy):
    @both
    def work(client, guard):
        yield lambda: client.set("{d}:1", "x")
        guard.detach()
        assert type(client) in {redis.RedisCluster, AsyncRedisCluster}
        assert (client.retry.get_retries(), client.reinitialize_steps) == (10, 5)
        assert (yield lambda: client.get("{d}:1")) == b"x"
        assert guard.compartments == ()
        again = protect(client, name="again")
        assert (yield lambda: client.get("{d}:1")) == b"x"
        assert sum(part.snapshot().succeeded for part in again.compartments) >= 1

    lab.do(work)


@pytest.mark.sampled(1)
def test_a_node_that_leaves_takes_its_compartment_along(kind):
    with ValkeyCluster.start(primaries=3, replicas=1) as cluster:
        leaving = cluster.nodes[5]

        @both
        def work(client, guard):
            yield lambda: client.set(KEYS[0], "x")
            assert leaving.name in {part.name for part in guard.compartments}
            leaving.kill()
            for node in cluster.nodes[:5]:
                node.ask("CLUSTER", "FORGET", leaving.node_id)
            hooks = guard._attachment._hooks
            limit = time.monotonic() + 20
            while leaving.name in {part.name for part in guard.compartments}:
                assert time.monotonic() < limit
                hooks.topology.suspect()
                yield lambda: asyncio.sleep(0.05) if kind.is_async else time.sleep(0.05)
            assert guard.snapshot().max_concurrent_calls == 100 * len(guard.compartments)

        lab = kind(cluster)
        lab.do(work)


def test_a_client_that_was_closed_looks_for_changes_again(healthy):
    """A closed client opens with its next call, also if it was closed while a node failed."""

    async def work(client, guard):
        topology, manager = guard._attachment._hooks.topology, client.nodes_manager
        await client.set(KEYS[0], "x")
        for _ in range(2):  # again while it waits for the time of its next look
            topology.suspect()
            await asyncio.sleep(0.05)
        await client.aclose()
        assert await client.get(KEYS[0]) == b"x"
        gone = healthy.slot(KEYS[1])
        manager.slots_cache.pop(gone)
        topology.suspect()
        async with asyncio.timeout(20):
            while gone not in manager.slots_cache:
                await asyncio.sleep(0.05)

    AsyncCluster(healthy).do(work)


# --- bad input -----------------------------------------------------------------------------------


def test_a_child_process_follows_the_topology_by_itself(fragile):
    """Its parent's thread is looking when the child is made, and may hold locks of redis-py."""
    victim = fragile.nodes[0]
    key = keys_of(victim)[0]
    with SyncCluster(fragile).client(name="shards", timeout=0.3, breaker=PROMPT) as client:
        client.set(key, value_of(key))
        victim.freeze()
        with pytest.raises(CallTimeoutError):
            client.get(key)
        child = os.fork()
        if child == 0:
            limit = time.monotonic() + 30
            while time.monotonic() < limit:
                with contextlib.suppress(Exception):
                    os._exit(client.get(key) != value_of(key))
                time.sleep(0.05)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        fragile.await_primary(fragile.nodes[3])
        poll(lambda: _answers(client, key), "the parent follows as well", 20)


def _answers(client, key):
    with contextlib.suppress(Exception):
        return client.get(key) == value_of(key)
    return False


def test_a_client_that_finds_no_node_says_why(lab, healthy):
    """An asyncio client reads the topology with its first command."""

    @both
    def work(client, guard):
        for node in healthy.nodes:
            node.freeze()
        try:
            start = time.monotonic()
            with pytest.raises(CallTimeoutError):
                yield lambda: client.get(KEYS[0])
            assert time.monotonic() - start < 0.3 + ROOM
        finally:
            for node in healthy.nodes:
                node.thaw()
        healthy.await_healthy()

    lab.do(work, opened=False, timeout=0.3)


def test_bad_input_is_refused_in_words(healthy):
    client = SyncCluster(healthy).make()
    try:
        for options, words in [
            ({"compartments": "none"}, "compartments must be 'auto' for a cluster client"),
            ({"fleet": object()}, "fleet must be None for a cluster client"),
            ({"minimum_idle": 2}, "a cluster client keeps no idle connections"),
            ({"max_concurrent_calls": 1000}, "max_concurrent_calls must be"),
            ({"max_concurrent_calls": Adaptive()}, "must be a whole number for a cluster client"),
            ({"timeout": 0}, "timeout must be"),
            ({"time_out": 1}, "time_out"),
        ]:
            with pytest.raises(ConfigurationError, match=words):
                protect(client, **options)
        with pytest.raises(ConfigurationError, match="a ClusterPipeline belongs to a cluster client"):
            protect(client.pipeline())
        guard = protect(client, name="shards")
        with pytest.raises(ConfigurationError, match="guarded already, by <Guard 'shards'"):
            protect(client)
        guard.detach()
        node = client.get_nodes()[0]
        alone = protect(node.redis_connection, name="alone")
        with pytest.raises(
            ConfigurationError, match=r"node 127.0.0.1:.* is guarded already, by <Guard 'alone'"
        ):
            protect(client)
        alone.detach()
    finally:
        client.close()
    with pytest.raises(ConfigurationError, match="this cluster client has been closed"):
        protect(client)


def test_a_client_of_another_event_loop_is_refused(healthy):
    client = AsyncCluster(healthy).make()
    with asyncio.Runner() as first:
        first.run(client.set(KEYS[0], "x"))

        async def elsewhere():
            with pytest.raises(ConfigurationError, match="connections of another event loop"):
                protect(client)

        with asyncio.Runner() as second:
            second.run(elsewhere())
        first.run(client.aclose())


def test_refusals_may_look_like_redis_errors(lab):
    @both
    def work(client, guard):
        guard.force_open()
        with pytest.raises(redis.RedisError) as caught:
            yield lambda: client.get(KEYS[0])
        assert isinstance(caught.value, CircuitOpenError)

    lab.do(work, raise_as="driver")
