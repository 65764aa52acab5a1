"""A guard without a pool in a fleet: its slots are a part of a budget, its circuit follows the verdict."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from types import SimpleNamespace

import pytest

from guardrails import (
    Adaptive,
    Bulkhead,
    BulkheadFullError,
    CircuitOpenError,
    ConfigurationError,
    DeadlineSpentError,
    Guard,
    deadline,
)
from guardrails._core.gate import LOCK_FREE
from guardrails.fleet import Fleet
from guardrails.fleet._fleet import Budget, Verdict
from guardrails.fleet._records import GRANTED, Reply, Request
from guardrails.fleet._stores import StoreError
from guardrails.fleet._verdict import CLOSED, OPEN, Ruling
from guardrails.fleet._worker import FleetWorker
from guardrails.fleet._worker_lease import wanted
from support.polling import wait_until


class ScriptedStore:
    """Grants what a test says, and keeps the requests."""

    def __init__(self):
        self.grant, self.ruling, self.asked = 3, CLOSED, []

    def exchange(self, asks):
        self.asked += [ask.request for ask in asks]
        if isinstance(self.grant, Exception):
            raise self.grant
        return [self._answer(ask.request) for ask in asks]

    def _answer(self, request):
        if isinstance(request, Request):
            return Reply(GRANTED, self.grant, safe=2, workers=2, budget=8, largest=8)
        return Ruling(self.ruling, 1000, 0, 2, 9, 9, 0, 2)

    def close(self):
        pass


@pytest.fixture
def shop():
    """Makes guards with a budget or a verdict, under a store that the test answers for."""
    store = ScriptedStore()
    worker = FleetWorker("shop", lambda: store, None)

    def make(*, budget=True, **options):
        part = Budget("search", 8, 1, worker) if budget else Verdict("search", worker)
        options = {"max_concurrent_calls": 8, "fleet": part} | options
        return SimpleNamespace(guard=Guard("search", **options), store=store, worker=worker)

    yield make
    worker.close()


def limit(guard):
    return guard.snapshot().max_concurrent_calls


def test_the_first_call_joins_and_the_next_take_the_fast_path(shop):
    shop = shop()
    time.sleep(0.15)
    assert (shop.store.asked, limit(shop.guard)) == ([], 1), "a process without calls is no worker"
    assert shop.guard.run(int) == 0
    assert limit(shop.guard) == 3
    asked = next(each for each in shop.store.asked if isinstance(each, Request))
    assert (asked.has, asked.minimum, asked.most, asked.budget) == (0, 1, 8, 8)
    core = shop.guard.call_settings.gates[0].core
    assert core.fast is LOCK_FREE
    assert (core.fast_enter_until > core.last) is LOCK_FREE


def test_slots_follow_the_lease(shop):
    shop = shop(max_wait_duration=0.0)
    with shop.guard.call(), shop.guard.call(), shop.guard.call():
        with pytest.raises(BulkheadFullError), shop.guard.call():
            pass
        wait_until(lambda: any(isinstance(each, Request) and each.has == 3 for each in shop.store.asked))
        shop.store.grant = 1
        wait_until(lambda: limit(shop.guard) == 1)
    shop.store.grant = 8
    wait_until(lambda: limit(shop.guard) == 8)
    shop.guard.resize(2)
    assert limit(shop.guard) == 2
    shop.guard.resize(8)
    assert limit(shop.guard) == 8


def test_callers_that_an_adaptive_limit_refuses_ask_for_no_larger_lease(shop):
    """A connection would help none of them; the other workers can use it."""
    shop = shop(max_concurrent_calls=Adaptive(maximum=8, mode="enforce"), max_wait_duration=0.0)
    shop.store.grant = 8
    shop.guard.run(int)
    wait_until(lambda: limit(shop.guard) == 8)
    gate = shop.guard.call_settings.gates[0]
    gate.core.adaptive.limit = 2
    gate.step(lambda _: gate.core.adaptive.resize(8))
    gate.step(gate.core.refresh)
    time.sleep(2.2)  # until the peak of before is over
    asked = len(shop.store.asked)
    with shop.guard.call(), shop.guard.call():

        def wants():
            with pytest.raises(BulkheadFullError), shop.guard.call():
                pass
            return [each.wants for each in shop.store.asked[asked:] if isinstance(each, Request)]

        wait_until(lambda: wants() and wants()[-1] == 3)
        wait_until(lambda: len(wants()) > 3)
        assert max(wants()) == 3, "two, and a quarter more"


@pytest.mark.parametrize(("slots", "longest"), [(2, 3), (None, 7)])
def test_a_compartment_that_refuses_asks_for_a_larger_lease_only_if_that_helps_it(shop, slots, longest):
    """One of two slots stays so, whatever the lease; one of the default size gets its part of the lease."""
    shop = shop(max_wait_duration=0.0)
    reports = shop.guard.compartment("reports", max_concurrent_calls=slots)
    shop.store.grant = 3
    shop.guard.run(int)
    wait_until(lambda: limit(shop.guard) == 3)
    time.sleep(2.2)  # until the peak of before is over
    asked = len(shop.store.asked)
    with reports.call(), reports.call():

        def wants():
            with pytest.raises(BulkheadFullError), reports.call():
                pass
            return [each.wants for each in shop.store.asked[asked:] if isinstance(each, Request)]

        wait_until(lambda: len(wants()) > 3 and max(wants()) == longest)


@pytest.mark.parametrize(
    ("taken", "waiting", "usable", "refuses", "expected"),
    [(8, 0, 8, True, 16), (8, 3, 8, False, 11), (2, 0, 2, True, 2), (1, 5, 3, True, 3), (5, 1, 3, True, 5)],
)
def test_what_a_worker_could_use(taken, waiting, usable, refuses, expected):
    assert wanted(taken, waiting, 8, usable, refuses=refuses) == expected


@pytest.mark.parametrize("form", ["call", "call_async", "run_async", "in_loop"])
def test_every_form_of_a_call_joins(shop, form):
    shop = shop()

    async def nothing():
        return 5

    async def main():
        if form == "call_async":
            async with shop.guard.call():
                pass
        elif form == "run_async":
            assert await shop.guard.run_async(nothing) == 5
        else:  # a synchronous call on an event loop joins, and does not wait for the lease
            began = time.monotonic()
            shop.guard.run(int)
            assert time.monotonic() - began < 0.4

    if form == "call":
        with shop.guard.call():
            pass
    else:
        asyncio.run(main())
    wait_until(lambda: limit(shop.guard) == 3)


def test_a_compartment_joins_its_guard_and_may_have_more_than_the_floor(shop):
    shop = shop()
    reports = shop.guard.compartment("reports", max_concurrent_calls=5)
    with pytest.raises(ConfigurationError, match=r"\b8\b.* got 9"):
        shop.guard.compartment("large", max_concurrent_calls=9)
    with reports.call():
        assert limit(shop.guard) == 3
    shop.store.grant = 8
    wait_until(lambda: limit(shop.guard) == 8)
    assert limit(reports) == 5


def test_a_lease_without_slots_refuses_and_recovers(shop):
    shop = shop()
    shop.store.grant = 0
    for _ in range(2):
        with pytest.raises(BulkheadFullError):
            shop.guard.run(int)
    shop.store.grant = 2
    wait_until(lambda: limit(shop.guard) == 2)
    assert shop.guard.run(int) == 0


def test_without_the_store_a_worker_has_the_floor(shop):
    shop = shop()
    shop.store.grant = StoreError("gone")
    began = time.monotonic()
    assert shop.guard.run(int) == 0
    assert 0.4 < time.monotonic() - began < 3
    assert limit(shop.guard) == 1


@pytest.mark.parametrize("mode", ["off", "shadow"])
@pytest.mark.parametrize("in_loop", [False, True])
def test_a_guard_that_does_not_enforce_waits_for_no_lease(shop, mode, in_loop):
    shop = shop(mode=mode)
    shop.store.grant = StoreError("gone")

    async def zero():
        return 0

    began = time.monotonic()
    assert (asyncio.run(shop.guard.run_async(zero)) if in_loop else shop.guard.run(int)) == 0
    assert time.monotonic() - began < 0.4
    shop.store.grant = 3
    wait_until(lambda: limit(shop.guard) == 3)


@pytest.mark.parametrize("in_loop", [False, True])
def test_a_deadline_bounds_the_wait_for_the_first_lease(shop, in_loop):
    shop = shop()
    shop.store.grant = StoreError("gone")

    async def zero():
        return 0

    began = time.monotonic()
    with pytest.raises(DeadlineSpentError), deadline(0.1):
        asyncio.run(shop.guard.run_async(zero)) if in_loop else shop.guard.run(int)
    assert time.monotonic() - began < 0.4
    assert shop.guard.run(int) == 0
    assert time.monotonic() - began > 0.4, "before the first lease nobody has a connection"
    assert shop.guard.snapshot().rejected == {"deadline_spent": 1}


@pytest.mark.parametrize("budget", [True, False])
def test_the_circuit_follows_the_verdict(shop, budget):
    shop = shop(budget=budget)
    assert shop.guard.run(int) == 0
    shop.store.ruling = OPEN
    wait_until(lambda: shop.guard.state == "open")
    with pytest.raises(CircuitOpenError):
        shop.guard.run(int)
    shop.store.ruling = CLOSED
    wait_until(lambda: shop.guard.state == "closed")


def test_bad_input_is_named(shop):
    with pytest.raises(
        ConfigurationError, match=r"guard 'x': fleet must be a budget or verdict.* got 'shop'"
    ):
        Guard("x", max_concurrent_calls=2, fleet="shop")
    with pytest.raises(ConfigurationError, match="guard 'search' has no circuit"):
        shop(budget=False, breaker=None)
    assert shop(breaker=None).guard.run(int) == 0


def test_a_child_process_joins_with_its_own_first_call(tmp_path):
    fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
    guard = Guard("search", max_concurrent_calls=4, fleet=fleet.budget("search", connections=8))
    assert guard.run(int) == 0
    parent = fleet._worker.identity.worker
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ready = not guard._gate.fleet_member.started and not guard._gate.core.fast
            with guard.call():
                code = 0 if ready and guard._gate.fleet_member.started else 2
            code = code if fleet._worker.identity.worker != parent else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    fleet.close()


def test_two_workers_share_the_slots_of_one_budget(tmp_path):
    """All slots go to the one that has the callers, and never more than the budget are taken."""
    fleets, guards = [], []
    for _ in range(2):
        fleet = Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")
        budget = fleet.budget("search", connections=6)
        fleets.append(fleet)
        guards.append(Guard("search", max_concurrent_calls=6, fleet=budget, max_wait_duration=0.2))
    taken, most, over = [0], [0], threading.Event()
    lock = threading.Lock()

    def work(guard):
        while not over.is_set():
            try:
                with guard.call():
                    with lock:
                        taken[0] += 1
                        most[0] = max(most[0], taken[0])
                    time.sleep(0.05)
                    with lock:
                        taken[0] -= 1
            except BulkheadFullError:
                time.sleep(0.01)

    threads = [threading.Thread(target=work, args=(guards[0],)) for _ in range(8)]
    threads.append(threading.Thread(target=work, args=(guards[1],)))
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: limit(guards[0]) >= 4)
        time.sleep(1)
    finally:
        over.set()
        for thread in threads:
            thread.join(10)
    assert 4 <= most[0] <= 6
    for fleet in fleets:
        fleet.close()


def test_a_bulkhead_alone_takes_no_fleet():
    with pytest.raises(ConfigurationError, match="fleet"):
        Bulkhead("x", 2, fleet="shop")
