"""Pools that follow their leases: with a store that a test answers for, and with real ones."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import redis
import redis.asyncio
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import Guard, protect
from guardrails.errors import BulkheadFullError, CircuitOpenError, ConfigurationError
from guardrails.events import FleetBack, FleetLost, LeaseChanged
from guardrails.fleet import Fleet, _pool_lease, _worker, _worker_lease
from guardrails.fleet._fleet import Budget, Verdict
from guardrails.fleet._lease import members
from guardrails.fleet._records import GRANTED, TAKEN, Reply, Request
from guardrails.fleet._rulings import CLOSED, OPEN, Ruling
from guardrails.fleet._sqlite_store import SQLiteStore
from guardrails.fleet._stores import StoreError
from guardrails.fleet._worker import FleetWorker
from guardrails.fleet._worker_lease import FIRST_WAIT
from support.lateness import ROOM
from support.paths import PROCESSES
from support.polling import wait_until

ONE = text("select 1")


class ScriptedStore:
    """A store that grants what a test says.

    Attributes:
        grant: The next grants; an exception is raised.
        asked: The requests, with whether they said goodbye.
    """

    def __init__(self, grant=3):
        self.grant, self.asked, self.status = grant, [], GRANTED
        self.delay, self.ruling = 0.0, CLOSED
        self.more = {"safe": 2, "workers": 2, "budget": 8, "largest": 8}

    def exchange(self, asks):
        time.sleep(self.delay)
        self.asked += [(ask.request, ask.leaving) for ask in asks if isinstance(ask.request, Request)]
        if isinstance(self.grant, Exception):
            raise self.grant
        return [self.answer(ask.request) for ask in asks]

    def answer(self, request):
        if isinstance(request, Request):
            return Reply(self.status, self.grant, **self.more)
        return Ruling(self.ruling, 1000, 0, 2, 9, 9, 0, 2)

    def close(self):
        pass


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """An engine with room for eight connections, guarded by a lease that the test grants.

    Its first caller waits for the lease as long as a loaded machine may take. Where no lease lets it in, the
    test says how long it waits.
    """
    made, events, store = [], [], ScriptedStore()

    def make(url=f"sqlite:///{tmp_path}/shop.db", *, minimum=1, first_wait=20.0, **options):
        for module in (_worker_lease, _pool_lease):
            monkeypatch.setattr(module, "FIRST_WAIT", first_wait)
        new = create_async_engine if "aiosqlite" in url else create_engine
        engine = new(url, pool_size=8, max_overflow=0)
        worker = FleetWorker("shop", lambda: store, None)
        budget = Budget("shop-db", 8, minimum, worker)
        options = {"listeners": [events.append]} | options
        guard = protect(engine, fleet=budget, **options)
        made.append((guard, worker))
        return SimpleNamespace(engine=engine, guard=guard, worker=worker, store=store, events=events)

    yield make
    for guard, worker in made:
        worker.close()
        guard.detach()


def limit(shop):
    return shop.guard.snapshot().max_concurrent_calls


def test_pool_gets_its_lease_with_the_first_checkout(shop):
    shop = shop()
    assert shop.store.asked == []
    assert limit(shop) == 1
    with shop.engine.connect() as connection:
        assert connection.scalar(ONE) == 1
        assert limit(shop) == 3
    (request, leaving), *_ = shop.store.asked
    assert (request.has, request.cap, request.minimum, request.most, request.budget) == (0, 0, 1, 8, 8)
    assert not leaving
    shop.engine.dispose()


def test_smaller_lease_closes_idle_connections_then_busy_ones_and_reports_less_only_then(shop):
    shop = shop()
    shop.store.grant = 6
    connections = [shop.engine.connect() for _ in range(6)]
    for connection in connections[:3]:
        connection.close()
    shop.store.grant = 2
    wait_until(lambda: limit(shop) == 2 and shop.guard.snapshot().pool.open == 3)
    shop.store.asked.clear()
    wait_until(lambda: len(shop.store.asked) >= 2)
    assert {(request.has, request.cap) for request, _ in shop.store.asked[1:]} == {(3, 3)}
    with pytest.raises(BulkheadFullError):
        shop.engine.connect()
    for connection in connections[3:]:
        connection.close()
    assert shop.guard.snapshot().pool.open == 2
    wait_until(lambda: shop.store.asked[-1][0].cap == 2)
    changes = [
        (event.budget, event.old, event.new) for event in shop.events if isinstance(event, LeaseChanged)
    ]
    assert changes == [("shop-db", 1, 6), ("shop-db", 6, 2)]
    shop.engine.dispose()


def test_lease_is_among_the_figures_of_the_pool(shop):
    shop = shop()
    with shop.engine.connect():
        pass
    lease = shop.guard.snapshot().pool.lease
    assert (lease.budget, lease.connections, lease.workers, lease.limit, lease.safe_share) == (
        "shop-db",
        8,
        2,
        3,
        2,
    )
    assert lease.in_contact
    assert shop.guard.snapshot().pool.summary()["lease"]["limit"] == 3
    shop.engine.dispose()


def test_worker_that_is_short_asks_again_soon_and_says_what_it_wants(shop):
    shop = shop(max_wait_duration=5.0)
    shop.store.grant = 1
    held = shop.engine.connect()
    wait_until(lambda: len(shop.store.asked) >= 1)

    def call():
        with shop.engine.connect() as connection:
            connection.execute(ONE)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    wait_until(lambda: shop.store.asked[-1][0].wants == 5)  # one in use, three waiting, a quarter more
    shop.store.grant = 5
    for caller in callers:
        caller.join(10)
        assert not caller.is_alive()
    held.close()
    shop.engine.dispose()


@pytest.mark.parametrize("url", ["sqlite", "redis://127.0.0.1:1/0"], ids=["healthy", "gone"])
def test_a_call_runs_no_code_of_the_fleet_but_a_look_at_its_limit(url, tmp_path):
    """So no state of the store changes how long a call takes, after the first lease."""
    fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db" if url == "sqlite" else url, name="shop")
    guard = Guard("search", max_concurrent_calls=9, fleet=fleet.budget("search", connections=20))
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db", pool_size=5, max_overflow=0)
    protect(engine, fleet=fleet.budget("orders", connections=20))
    ran = set()

    def note(frame, event, _):
        if event == "call" and f"{os.sep}fleet{os.sep}_" in frame.f_code.co_filename:
            ran.add(frame.f_code.co_qualname)

    def query():
        with engine.connect() as connection:
            connection.execute(ONE)

    try:
        for call, expected in (
            (lambda: guard.run(int), set()),
            (query, {"PoolLease.admits", "PoolLease.limit"}),
        ):
            call()
            ran.clear()
            sys.setprofile(note)
            try:
                for _ in range(3):
                    call()
            finally:
                sys.setprofile(None)
            assert ran == expected
    finally:
        fleet.close()
        engine.dispose()


def test_callers_are_refused_while_the_lease_has_no_connection(shop):
    shop = shop(first_wait=ROOM)
    shop.store.grant = 0
    for _ in range(2):
        with pytest.raises(BulkheadFullError):
            shop.engine.connect()
    assert shop.guard.snapshot().pool.open == 0
    shop.store.grant = 2
    wait_until(lambda: limit(shop) == 2)
    with shop.engine.connect() as connection:
        assert connection.scalar(ONE) == 1
    shop.engine.dispose()


@pytest.mark.parametrize("fault", ["slow", "gone"])
def test_first_callers_wait_half_a_second_and_then_have_the_floor(shop, fault, caplog):
    caplog.set_level(logging.WARNING)
    shop = shop(minimum=2, first_wait=FIRST_WAIT)
    shop.store.delay = 1 if fault == "slow" else 0
    shop.store.grant = StoreError("it refuses the login") if fault == "gone" else 3
    began = time.monotonic()
    with shop.engine.connect() as connection:
        assert connection.scalar(ONE) == 1
    assert 0.4 < time.monotonic() - began < 3
    assert limit(shop) == 2
    began = time.monotonic()
    with shop.engine.connect():
        pass
    assert time.monotonic() - began < 0.4
    if fault == "gone":
        words = "fleet 'shop': no contact to its store (it refuses the login); each pool keeps its safe share"
        wait_until(lambda: words in caplog.messages)
        assert [type(event) for event in shop.events if isinstance(event, FleetLost | FleetBack)] == [
            FleetLost
        ]
    else:
        wait_until(lambda: limit(shop) == 3)
    shop.engine.dispose()


def test_without_contact_it_shrinks_to_the_safe_share_and_comes_back(shop, caplog):
    caplog.set_level(logging.WARNING)
    shop = shop()
    shop.store.grant = 6
    with shop.engine.connect():
        pass
    shop.store.grant = StoreError("TimeoutError")
    wait_until(lambda: limit(shop) == 2)
    wait_until(lambda: any(isinstance(event, FleetLost) for event in shop.events))
    shop.store.grant = 4
    wait_until(lambda: limit(shop) == 4)
    wait_until(lambda: any(isinstance(event, FleetBack) for event in shop.events))
    seen = [event for event in shop.events if isinstance(event, FleetLost | FleetBack)]
    assert [(type(event), getattr(event, "keeps", None)) for event in seen] == [
        (FleetLost, 2),
        (FleetBack, None),
    ]
    assert len([line for line in caplog.messages if "no contact" in line]) == 1
    shop.engine.dispose()


def test_lost_contact_is_logged_again_while_it_lasts(shop, caplog, monkeypatch):
    """Who reads the log an hour later must see it, too. The end is logged once."""

    def lines(words):
        return len([line for line in caplog.messages if words in line])

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(_worker, "_WARN_INTERVAL", 0.3)
    shop = shop()
    with shop.engine.connect():
        pass
    shop.store.grant = StoreError("TimeoutError")
    wait_until(lambda: lines("no contact") >= 3)
    shop.store.grant = 4
    wait_until(lambda: lines("in contact with its store again"))
    count = lines("no contact")
    time.sleep(0.7)
    assert (lines("no contact"), lines("in contact with its store again")) == (count, 1)
    shop.engine.dispose()


def test_connections_of_a_disposed_pool_count_until_they_are_closed(shop):
    """Else a disposal under load would open the lease a second time."""
    shop = shop()
    first, second, third = (shop.engine.connect() for _ in range(3))
    shop.engine.dispose()
    with pytest.raises(BulkheadFullError):
        shop.engine.connect()
    assert shop.guard.snapshot().pool.open == 3
    assert first.scalar(ONE) == 1
    first.close()
    assert shop.guard.snapshot().pool.open == 2, "it is closed, and not kept in the old pool"
    with shop.engine.connect() as connection:
        assert connection.scalar(ONE) == 1
        assert shop.guard.snapshot().pool.open == 3
    second.close()
    third.close()
    assert (shop.guard.snapshot().pool.open, shop.guard.snapshot().in_use) == (1, 0)
    shop.engine.dispose()


def test_asyncio_connections_of_a_disposed_pool_count_until_they_are_closed(shop, tmp_path):
    shop = shop(f"sqlite+aiosqlite:///{tmp_path}/shop.db")

    async def main():
        connections = [await shop.engine.connect() for _ in range(3)]
        await shop.engine.dispose()
        with pytest.raises(BulkheadFullError):
            await shop.engine.connect()
        for connection in connections:
            await connection.close()
        assert (shop.guard.snapshot().pool.open, shop.guard.snapshot().in_use) == (0, 0)
        async with shop.engine.connect() as connection:
            assert await connection.scalar(ONE) == 1
        await shop.engine.dispose()

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("kind", [LeaseChanged, FleetLost])
def test_a_listener_that_raises_stops_no_lease(shop, kind, caplog):
    def listener(event):
        raise RuntimeError("of the application")

    listener.events = (kind,)
    shop = shop(listeners=[listener])
    with shop.engine.connect():
        pass
    shop.store.grant = StoreError("gone")
    wait_until(lambda: "of the application" in caplog.text)
    wait_until(lambda: limit(shop) == 2)
    shop.store.grant = 5
    wait_until(lambda: limit(shop) == 5)
    shop.engine.dispose()


def test_two_engines_of_one_process_share_a_budget_as_two_workers(tmp_path):
    """Each has a lease and a floor; the one that is busy gets what the other leaves."""
    fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop", worker_id="web")
    engines = [create_engine(f"sqlite:///{tmp_path}/{name}.db", pool_size=6, max_overflow=0) for name in "ab"]
    guards = [
        protect(engine, fleet=fleet.budget("db", connections=6), max_wait_duration=0.1) for engine in engines
    ]
    engines[1].connect().close()
    over = threading.Event()

    def work():
        while not over.is_set():
            with contextlib.suppress(BulkheadFullError), engines[0].connect() as connection:
                connection.execute(ONE)
                time.sleep(0.05)

    callers = [threading.Thread(target=work) for _ in range(6)]
    for caller in callers:
        caller.start()
    try:
        wait_until(lambda: guards[0].snapshot().max_concurrent_calls >= 4)
        leases = [guard.snapshot().pool.lease for guard in guards]
    finally:
        over.set()
        for caller in callers:
            caller.join(10)
    assert [lease.workers for lease in leases] == [2, 2]
    assert leases[1].limit >= 1
    known = fleet._worker.new_store().read().budgets["shop", "db"]
    names = {name for name in known if name != "@"}
    assert len(names) == 2
    assert {name.partition("#")[0] for name in names} == {"web"}
    for guard, engine in zip(guards, engines, strict=True):
        guard.detach()
        engine.dispose()
    fleet.close()


def test_asyncio_engine_follows_its_lease(shop, tmp_path):
    shop = shop(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    shop.store.grant = 4

    async def main():
        connections = [await shop.engine.connect() for _ in range(4)]
        for connection in connections[:3]:
            await connection.close()
        shop.store.grant = 1
        while limit(shop) != 1 or shop.guard.snapshot().pool.open != 1:
            await asyncio.sleep(0.01)
        await connections[3].close()
        shop.store.grant = 0
        while shop.guard.snapshot().pool.open:
            await asyncio.sleep(0.01)
        with pytest.raises(BulkheadFullError):
            await shop.engine.connect()
        await shop.engine.dispose()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_the_event_loop_runs_on_while_the_first_caller_waits(shop, tmp_path):
    shop = shop(f"sqlite+aiosqlite:///{tmp_path}/shop.db", first_wait=FIRST_WAIT)
    shop.store.delay = 3
    beats = []

    async def beat():
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def main():
        beating = asyncio.create_task(beat())
        async with shop.engine.connect() as connection:
            await connection.execute(ONE)
        beating.cancel()
        await shop.engine.dispose()

    asyncio.run(main())
    assert len(beats) > 10


def test_resize_sets_the_most_that_the_lease_may_give(shop):
    shop = shop()
    shop.store.grant = 6
    with shop.engine.connect():
        pass
    shop.guard.resize(2)
    assert limit(shop) == 2
    wait_until(lambda: shop.store.asked[-1][0].most == 2)
    shop.guard.resize(8)
    assert limit(shop) == 6
    shop.engine.dispose()


def test_compartments_live_through_a_lease_without_connections(shop):
    shop = shop(compartments="declared", first_wait=ROOM)
    reports = shop.guard.compartment("reports")
    shop.store.grant = 0
    with pytest.raises(BulkheadFullError):
        shop.engine.connect()
    shop.store.grant = 8
    wait_until(lambda: limit(shop) == 8)
    assert reports.snapshot().max_concurrent_calls == 5
    with reports.call(), shop.engine.connect() as connection:
        assert connection.scalar(ONE) == 1
    shop.engine.dispose()


def test_minimum_idle_connections_are_opened_under_the_lease(shop):
    shop = shop(minimum_idle=3)
    shop.store.grant = 2
    shop.guard.warm_up()
    assert shop.guard.snapshot().pool.idle == 2, "all that the lease allows of the three"
    assert shop.store.asked[0][0].has == 0
    shop.engine.dispose()


def test_goodbye_is_said_on_detach_and_on_close(shop):
    shop = shop()
    with shop.engine.connect():
        pass
    shop.engine.dispose()
    shop.worker.close()
    assert [leaving for _, leaving in shop.store.asked].count(True) == 1
    assert shop.store.asked[-1][0].has == 0
    shop.worker.close()
    count = len(shop.store.asked)
    time.sleep(0.3)
    assert len(shop.store.asked) == count


def test_two_processes_with_one_worker_id_become_two_workers(shop, caplog):
    shop = shop()
    with shop.engine.connect():
        pass
    name = shop.worker.identity.worker
    shop.store.status = TAKEN
    wait_until(lambda: shop.worker.identity.worker != name)
    shop.store.status = GRANTED
    assert f"another process uses the worker_id {name!r}" in caplog.text
    wait_until(lambda: shop.store.asked[-1][0].worker.startswith(f"{name}~"))
    shop.engine.dispose()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"largest": 9},
            "fleet budget 'shop-db': the workers name different budgets, from 8 to 9 connections",
        ),
        ({"workers": 9}, "9 workers need at least 1 connections each, more than the budget of 8"),
    ],
)
def test_a_budget_that_does_not_fit_is_one_warning(shop, caplog, more, words):
    shop = shop()
    shop.store.more |= more
    with shop.engine.connect():
        pass
    wait_until(lambda: len(shop.store.asked) >= 3)
    assert [words in line for line in caplog.messages if "fleet" in line] == [True]
    shop.engine.dispose()


def test_a_server_with_more_connections_than_the_budget_is_one_warning(shop, caplog):
    shop = shop()
    lease = shop.guard._attachment.upkeep.lease
    lease.compare(8)
    assert [line for line in caplog.messages if "fleet" in line] == []
    lease.compare(9)
    lease.compare(10)
    (line,) = [line for line in caplog.messages if "fleet" in line]
    assert "the server has 9 connections of this role, more than the budget of 8" in line


# --- the verdict ----------------------------------------------------------------------------------------


def test_an_engine_with_a_budget_follows_its_verdict(shop):
    """Without compartments: a workload whose calls succeed would go on, as in every open circuit."""
    shop = shop(compartments="none")
    with shop.engine.connect():
        pass
    shop.store.ruling = OPEN
    wait_until(lambda: shop.guard.state == "open")
    with pytest.raises(CircuitOpenError):
        shop.engine.connect()
    shop.store.ruling = CLOSED
    wait_until(lambda: shop.guard.state == "closed")
    shop.engine.dispose()


def test_an_engine_may_follow_a_verdict_alone(shop, tmp_path):
    budgeted = shop()
    engine = create_engine(f"sqlite:///{tmp_path}/other.db", pool_size=5, max_overflow=0)
    guard = protect(engine, fleet=Verdict("other", budgeted.worker))
    assert guard.snapshot().max_concurrent_calls == 5
    with engine.connect():
        pass
    budgeted.store.ruling = OPEN
    wait_until(lambda: guard.state == "open")
    assert guard.snapshot().pool.lease is None
    guard.detach()
    engine.dispose()


def test_an_engine_without_a_circuit_has_a_budget_alone(shop):
    shop = shop(breaker=None)
    with shop.engine.connect():
        pass
    assert limit(shop) == 3
    shop.engine.dispose()


@pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis], ids=["sync", "async"])
def test_a_redis_client_follows_a_verdict_alone(kind, valkey):
    store = ScriptedStore()
    worker = FleetWorker("shop", lambda: store, None)

    async def main():
        client = kind(port=valkey.port, max_connections=5)
        guard = protect(client, fleet=Verdict("cache", worker), compartments="none")
        assert await _awaited(client.ping())
        store.ruling = OPEN
        while guard.state != "open":
            await asyncio.sleep(0.01)
        with pytest.raises(CircuitOpenError):
            await _awaited(client.ping())
        await _awaited(client.aclose() if kind is redis.asyncio.Redis else client.close())
        guard.detach()

    asyncio.run(asyncio.wait_for(main(), 30))
    worker.close()


async def _awaited(value):
    return await value if inspect.isawaitable(value) else value


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", None, 5, "http://:hunter2@x", "sqlite://", "sqlite:///", "redis+cluster://:hunter2@x"]
)
def test_a_wrong_url_is_refused_without_its_text(url):
    with pytest.raises(
        ConfigurationError, match="Fleet: url must begin with redis://, rediss:// or unix://"
    ) as told:
        Fleet(url, name="shop")
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("name", ["", "a b", "x" * 101, "{x}", "@x", "é", None, 5])
def test_a_wrong_name_is_refused(name, tmp_path):
    with pytest.raises(ConfigurationError, match="Fleet: name must be a text of 1 to 100 visible ASCII"):
        Fleet(f"sqlite:///{tmp_path}/f.db", name=name)
    if name is not None:
        with pytest.raises(ConfigurationError, match="worker_id must be a text"):
            Fleet(f"sqlite:///{tmp_path}/f.db", name="shop", worker_id=name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"connections": 0}, "connections must be a whole number from 1 to 1000000, got 0"),
        ({"connections": 2.5}, "connections must be a whole number from 1 to 1000000, got 2.5"),
        ({"connections": 4, "minimum": 5}, "minimum must be a whole number from 1 to 4, got 5"),
        ({"connections": 4, "minimum": 0}, "minimum must be a whole number from 1 to 4, got 0"),
    ],
)
def test_a_wrong_budget_is_refused_with_field_value_and_range(tmp_path, options, words):
    fleet = Fleet(f"sqlite:///{tmp_path}/f.db", name="shop")
    with pytest.raises(ConfigurationError, match=f"fleet 'shop': budget 'db': {words}"):
        fleet.budget("db", **options)


def test_one_process_has_one_budget_of_a_name(tmp_path):
    fleet = Fleet(f"sqlite:///{tmp_path}/f.db", name="shop")
    budget = fleet.budget("db", connections=4)
    assert fleet.budget("db", connections=4) is budget
    with pytest.raises(ConfigurationError, match="has 4 connections and a minimum of 1 already, got 5 and 1"):
        fleet.budget("db", connections=5)


def test_protect_takes_a_budget_and_not_a_fleet(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    with pytest.raises(ConfigurationError, match=r"fleet must be a budget or verdict, .* got a Fleet"):
        protect(engine, fleet=Fleet(f"sqlite:///{tmp_path}/f.db", name="shop"))
    engine.dispose()


# --- processes ------------------------------------------------------------------------------------------


def known(path):
    """The workers in a SQLite store that have not left, with their records."""
    view = SQLiteStore(str(path), "shop").read()
    found = members(view.budgets.get(("shop", "db"), {}), view.now)
    return {name: record for name, record in found.items() if not record.left}


def run(script, *words):
    command = [sys.executable, PROCESSES / script, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def test_each_child_of_a_fork_is_a_worker_of_its_own_and_leaves_at_its_exit(tmp_path):
    path = tmp_path / "fleet.db"
    process = run("fleet_forks.py", tmp_path / "shop.db", path)
    try:
        assert process.stdout.readline().split() == ["parent", "1"]
        wait_until(lambda: len(known(path)) == 3)
        names = sorted(known(path))
        assert len({record.instance for record in known(path).values()}) == 3
        assert names[0] == "web"
        assert all(name.startswith("web:") for name in names[1:])
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(20) == 0
        assert known(path) == {}
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("farewell", ["exit", "SIGTERM"])
def test_an_orderly_exit_says_goodbye(tmp_path, farewell):
    path = tmp_path / "fleet.db"
    process = run("fleet_exit.py", tmp_path / "shop.db", path)
    try:
        assert process.stdout.readline() == "ready\n"
        wait_until(lambda: list(known(path)) == ["web"])
        if farewell == "SIGTERM":
            os.kill(process.pid, signal.SIGTERM)
        process.communicate("\n", timeout=20)
        assert process.returncode == 0
        assert known(path) == {}
    finally:
        process.kill()
        process.communicate()


def test_a_killed_worker_is_taken_over_under_its_name(tmp_path):
    path = tmp_path / "fleet.db"
    instances = []
    for _ in range(2):
        process = run("fleet_exit.py", tmp_path / "shop.db", path)
        try:
            assert process.stdout.readline() == "ready\n"
            wait_until(lambda: list(known(path)) == ["web"])
            instances.append(known(path)["web"].instance)
        finally:
            process.kill()
            process.communicate()
    assert len(set(instances)) == 2


def test_gevent_workers_renew_while_greenlets_work(tmp_path):
    ended = run("fleet_gevent.py", tmp_path / "shop.db", tmp_path / "fleet.db").communicate(timeout=60)[0]
    assert ended.split() == ["first", "True", "beats", "True", "renewed", "True"]
