"""The thread of a process that renews its leases: steps that raise, joining, leaving and forks."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import Guard, protect
from guardrails.events import FleetLost
from guardrails.fleet import Fleet, _worker
from guardrails.fleet._fleet import Budget
from guardrails.fleet._records import GRANTED, Reply, Request
from guardrails.fleet._rulings import CLOSED, Ruling
from guardrails.fleet._stores import StoreError
from guardrails.fleet._worker import FleetWorker
from support.paths import PACKAGE
from support.polling import wait_until


class Store:
    """Grants three connections.

    Attributes:
        asked: The asks.
        arrived: Those that were answered.
        open: An answer waits for it.
        error: It is raised instead of an answer, unless it is None.
    """

    def __init__(self):
        self.asked, self.arrived, self.error, self.open = [], [], None, threading.Event()
        self.open.set()

    def exchange(self, asks):
        self.asked += asks
        self.open.wait(30)
        if self.error is not None:
            raise self.error
        self.arrived += asks
        return [self.answer(ask.request) for ask in asks]

    def answer(self, request):
        if isinstance(request, Request):
            return Reply(GRANTED, 3, safe=2, workers=2, budget=8, largest=8)
        return Ruling(CLOSED, 1000, 0, 2, 9, 9, 0, 2)

    def close(self):
        pass

    def farewells(self):
        return [ask.request.worker for ask in self.asked if ask.leaving]


class Task:
    """A lease that is renewed at every tick; the steps in `bad` raise."""

    reports_leaving = is_member = True

    def __init__(self, budget="db"):
        self.budget, self.suffix, self.is_lost = budget, "", False
        self.bad, self.ticks, self.answers = set(), 0, 0

    def tick(self, now):
        self._step("tick")
        self.ticks += 1
        return True

    def request(self, identity):
        self._step("request")
        return Request(identity.worker, identity.instance, 1, False, 0, 0, 0, 1, 1, 8, 8, identity.host)

    def take_reply(self, reply):
        self._step("take_reply")
        self.answers += 1
        return True

    def forget(self):
        self._step("forget")

    def _step(self, name):
        if name in self.bad:
            raise OSError(f"{name} fails")


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def worker(store):
    worker = FleetWorker("shop", lambda: store, "web")
    yield worker
    store.open.set()
    worker.close()


# --- steps that raise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["tick", "request", "take_reply"])
def test_a_step_that_raises_stops_neither_other_leases_nor_its_own(worker, store, step, caplog):
    bad, good = Task("bad"), Task("good")
    worker.join(bad)
    worker.join(good)
    wait_until(lambda: bad.answers and good.answers)
    bad.bad.add(step)
    wait_until(lambda: "OSError" in caplog.text)
    before = good.ticks, good.answers
    wait_until(lambda: good.ticks > before[0] + 2 and good.answers > before[1] + 2)
    bad.bad.clear()
    before = bad.ticks, bad.answers
    wait_until(lambda: bad.ticks > before[0] and bad.answers > before[1])
    assert [line for line in caplog.messages if "a step failed" in line] == [
        "fleet 'shop': a step failed; it is tried again"
    ]


def test_a_store_that_raises_any_error_is_asked_again(worker, store):
    store.error = RuntimeError("not a StoreError")
    task = Task()
    worker.join(task)
    wait_until(lambda: len(store.asked) >= 2)
    assert task.answers == 0
    store.error = None
    wait_until(lambda: task.answers)


def test_a_pool_that_cannot_be_measured_shrinks_to_its_safe_share(store, worker):
    """It asks for no renewal, so its lease ends; the clock of its guard raises nothing here."""
    events, broken = [], threading.Event()

    def count():
        if broken.is_set():
            raise RuntimeError("the pool cannot be read")
        return 1

    guard = Guard("db", max_concurrent_calls=8, listeners=[events.append])
    lease = Budget("db", 8, 1, worker).lease(guard, count)
    lease.admit(None)
    assert lease.limit == 3
    broken.set()
    wait_until(lambda: any(isinstance(event, FleetLost) for event in events))
    assert lease.limit == 2
    broken.clear()
    wait_until(lambda: lease.limit == 3)


def test_lost_contact_is_one_line_a_minute_for_as_long_as_it_lasts(worker, store, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(_worker, "time", SimpleNamespace(monotonic=lambda: clock.now))
    store.error = StoreError("it loads its data")
    task = Task()
    worker.join(task)
    wait_until(lambda: len(store.asked) >= 2)
    lost = "fleet 'shop': no contact to its store (it loads its data); each pool keeps its safe share"
    back = "fleet 'shop': in contact with its store again"

    def lines_after(seconds):
        clock.now += seconds
        ticks = task.ticks
        wait_until(lambda: task.ticks >= ticks + 3)
        return [line for line in caplog.messages if line in {lost, back}]

    assert lines_after(0) == []
    task.is_lost = True
    assert lines_after(0) == [lost]
    assert lines_after(59) == [lost]
    assert lines_after(1) == [lost, lost]
    assert lines_after(60) == [lost, lost, lost]
    task.is_lost = False
    assert lines_after(1) == [lost, lost, lost, back]
    task.is_lost = True
    assert lines_after(1) == [lost, lost, lost, back], "less than a minute after the last line"
    assert lines_after(58) == [lost, lost, lost, back, lost]


# --- joining and leaving --------------------------------------------------------------------------------


def test_each_lease_of_a_process_has_a_name_that_none_had_before(worker, store):
    first, second = Task(), Task()
    worker.join(first)
    worker.join(second)
    worker.leave(first)
    third, fourth = Task(), Task()
    worker.join(third)
    worker.leave(second)
    worker.join(fourth)
    wait_until(lambda: third.answers and fourth.answers)
    assert [task.suffix for task in (first, second, third, fourth)] == ["", "#1", "#2", "#3"]
    wait_until(lambda: store.farewells() == ["web", "web#1"])
    assert {ask.request.worker for ask in store.asked[-2:]} == {"web#2", "web#3"}


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_first_use_changes_no_name(worker, order):
    """Else a process that is restarted with a fixed worker_id would not find its records."""

    class Verdict(Task):
        """Stored beside the leases, so it may have the name of one."""

    tasks = [Task("orders"), Task("prices"), Verdict("orders"), Verdict("prices")]
    for task in tasks[::order]:
        worker.join(task)
    assert [task.suffix for task in tasks] == [""] * 4


def test_a_lease_that_joins_while_the_thread_ends_is_renewed(worker, monkeypatch):
    first, second = Task(), Task()
    worker.join(first)
    wait_until(lambda: first.answers)
    joining = threading.Thread(target=worker.join, args=(second,))
    living = worker._tasks.living

    def read_and_let_join():
        """The thread sees no lease, and then one joins."""
        found = living()
        if not found and threading.current_thread().name == "guardrails-housekeeper" and not joining.ident:
            joining.start()
            joining.join(0.2)
        return found

    monkeypatch.setattr(worker, "_tasks", SimpleNamespace(living=read_and_let_join, **_others(worker._tasks)))
    worker.leave(first)
    wait_until(lambda: joining.ident and second.answers)
    joining.join(10)
    assert not joining.is_alive()


def _others(registry):
    return {"add": registry.add, "discard": registry.discard}


def test_the_last_lease_says_goodbye_although_the_thread_ends(worker, store):
    task = Task()
    worker.join(task)
    wait_until(lambda: task.answers)
    thread = worker._thread
    worker.leave(task)
    thread.join(10)
    assert not thread.is_alive()
    assert store.farewells() == ["web"]
    assert store.asked[-1].leaving, "what asks after its goodbye is a worker again"


def test_detach_on_an_event_loop_does_not_wait_for_the_store(worker, store, tmp_path):
    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db", pool_size=8, max_overflow=0)
        guard = protect(engine, fleet=Budget("shop-db", 8, 1, worker))
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))
        store.open.clear()
        count = len(store.asked)
        while len(store.asked) == count:  # the fleet's thread waits for an answer
            await asyncio.sleep(0.01)
        guard.detach()
        assert not store.farewells()
        store.open.set()
        await engine.dispose()
        return guard, guard.snapshot().max_concurrent_calls

    _, limit = asyncio.run(asyncio.wait_for(main(), 30))
    wait_until(lambda: len(store.farewells()) == 1)
    assert limit == 3


def test_an_exit_sends_the_goodbye_that_is_not_sent_yet(worker, store):
    first, second = Task(), Task()
    worker.join(first)
    worker.join(second)
    wait_until(lambda: first.answers and second.answers)
    store.open.clear()
    count = len(store.asked)
    wait_until(lambda: len(store.asked) > count)
    worker.leave(second)
    threading.Timer(0.1, store.open.set).start()
    worker.leave_now()
    assert store.farewells() == ["web#1", "web"]


def test_a_goodbye_that_did_not_arrive_is_said_with_the_next_renewal(worker, store):
    first, second = Task(), Task()
    worker.join(first)
    worker.join(second)
    wait_until(lambda: first.answers and second.answers)
    store.error = StoreError("it is locked")
    worker.leave(first)
    wait_until(store.farewells)
    arrived, answers, store.error = len(store.arrived), second.answers, None
    wait_until(lambda: second.answers >= answers + 3)
    said = [ask.request.worker for ask in store.arrived[arrived:] if ask.leaving]
    assert said == ["web"], "once"


# --- forks ----------------------------------------------------------------------------------------------


def test_a_child_starts_without_a_store_and_makes_it_when_it_asks(store):
    """Whatever prevents it, such as a lack of descriptors, breaks nothing else in the child."""
    missing = threading.Event()

    def new_store():
        if missing.is_set():
            raise FileNotFoundError("lease.lua")
        return store

    worker = FleetWorker("shop", new_store, "web")
    task = Task()
    worker.join(task)
    task.bad.add("forget")
    missing.set()
    thread = worker._thread
    worker.start_in_child()
    task.bad.clear()
    worker.join(task)
    time.sleep(0.3)
    answers = task.answers
    missing.clear()
    wait_until(lambda: task.answers > answers)
    worker.close()
    assert thread is not worker._thread


def test_a_child_in_which_no_hook_was_run_says_no_goodbye_for_its_parent(worker, store, monkeypatch):
    task = Task()
    worker.join(task)
    wait_until(lambda: task.answers)
    monkeypatch.setattr(_worker, "check_process", worker.start_in_child)
    worker.leave_now()
    assert store.farewells() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_works_although_the_files_of_its_release_are_gone(monkeypatch):
    """A preloading master outlives the folder that it was started from."""
    fleet = Fleet("redis://127.0.0.1:1/0", name="shop")
    fleet.budget("db", connections=8)
    guard = Guard("other", max_concurrent_calls=1)

    read = Path.read_text

    def gone(path, *args, **kwargs):
        if path.is_relative_to(PACKAGE):
            raise FileNotFoundError
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", gone)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with guard.call():
                code = 0
            fleet._worker.new_store()
        except BaseException:
            code = 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
