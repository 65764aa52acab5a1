"""State that threads share outside the lock of a gate: right with the interpreter lock and without."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import sys
import threading
import weakref
from types import SimpleNamespace

import pytest

from guardrails import Guard
from guardrails._dbapi import watchdog
from guardrails._guard.locked_gate import all_gates
from guardrails._http.route_stats import RouteStats
from guardrails._pool import frames, referrers
from guardrails._runtime import housekeeper, pauses, scope
from guardrails._runtime.guard_log import GuardLog
from guardrails._util.weak_registry import WeakRegistry


@pytest.fixture
def switching():
    """Threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def together(*works):
    """Runs each in a thread of its own; raises what one of them has raised."""
    errors, start = [], threading.Barrier(len(works))

    def run(work):
        try:
            start.wait(30)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


class Thing:
    """Something that can be referred to weakly."""


def test_guards_can_be_listed_while_others_are_made(switching):
    """A scrape, a status page, a fork: each reads the guards of the process."""
    kept = []

    def make():
        kept.extend(Guard(f"guard {number}", max_concurrent_calls=1) for number in range(100))

    def read():
        for _ in range(200):
            all_gates()

    together(make, make, read)
    assert {guard.call_settings.gates[0] for guard in kept} <= set(all_gates())


def test_a_guard_may_be_made_in_the_middle_of_a_list_of_all():
    """As another thread does, between any two lines of the one that lists them."""
    kept = [Guard("first", max_concurrent_calls=1), Guard("second", max_concurrent_calls=1)]

    def trace(frame, event, arg):
        if len(kept) < 100:
            kept.append(Guard("another", max_concurrent_calls=1))
        return trace

    usual = sys.gettrace()
    sys.settrace(trace)
    try:
        found = all_gates()
    finally:
        sys.settrace(usual)
    assert {guard.call_settings.gates[0] for guard in kept[:2]} <= set(found)


def test_a_registry_forgets_what_is_gone_and_keeps_what_was_added_twice():
    """It keeps nothing alive, and needs no collection to be empty."""
    registry, kept, gone = WeakRegistry(), Thing(), Thing()
    for thing in (kept, gone, kept):
        registry.add(thing)
    assert registry.living() == [kept, gone]
    told = weakref.ref(gone)
    gc.disable()
    try:
        del gone, thing
        assert told() is None
        assert registry.living() == [kept]
        assert len(registry._references) == 1
    finally:
        gc.enable()


def count_starts(monkeypatch, module, in_the_middle):
    """Counts the threads that a module starts, and does something while each is made."""
    started = []

    def daemon(name, target, *args):
        in_the_middle()
        return SimpleNamespace(start=lambda: started.append(name))

    monkeypatch.setattr(module, "daemon", daemon)
    return started


def test_two_threads_start_one_housekeeper(monkeypatch):
    """Both have found that there is none."""
    started = count_starts(monkeypatch, housekeeper, threading.Barrier(2).wait)
    keeper = housekeeper._Housekeeper()
    together(*[lambda: keeper.run_later(lambda: None, 60)] * 2)
    assert started == ["guardrails-housekeeper"]


def test_two_threads_start_one_watchdog(monkeypatch):
    """Both have found that there is none."""
    started = count_starts(monkeypatch, watchdog, threading.Barrier(2).wait)
    dog = watchdog._Watchdog()
    together(*[lambda: dog.watch(None, None, 60)] * 2)
    assert started == ["guardrails-watchdog"]


def test_two_threads_start_one_pause_detector(monkeypatch):
    """Both have found that this process has none."""
    started = count_starts(monkeypatch, pauses, lambda: None)
    usual, barrier = os.getpid, threading.Barrier(2)
    detector = pauses.PauseDetector()

    def getpid():
        barrier.wait(30)
        return usual()

    monkeypatch.setattr(pauses.os, "getpid", getpid)
    together(*[lambda: detector.wake(1.0)] * 2)
    assert started == ["guardrails-pulse"]


def test_a_finaliser_that_runs_while_a_thread_is_started_starts_no_second_one(monkeypatch):
    """The collector may run there, and return a connection that nothing holds any more."""
    asked = []

    def once(ask):
        def in_the_middle():
            if not asked:
                asked.append(ask)
                ask()

        return in_the_middle

    keeper = housekeeper._Housekeeper()
    started = count_starts(monkeypatch, housekeeper, once(lambda: keeper.run_later(lambda: None, 60)))
    keeper.run_later(lambda: None, 60)
    assert started == ["guardrails-housekeeper"]
    asked.clear()
    dog = watchdog._Watchdog()
    started = count_starts(monkeypatch, watchdog, once(lambda: dog.watch(None, None, 60)))
    dog.watch(None, None, 60)
    assert started == ["guardrails-watchdog"]


def test_a_finaliser_in_the_watchdog_may_end_another_call(monkeypatch):
    """It returns a connection in the middle of a look at those that are overdue."""
    count_starts(monkeypatch, watchdog, lambda: None)
    monkeypatch.setattr(watchdog, "_send", lambda request: None)
    dog = watchdog._Watchdog()
    monkeypatch.setattr(watchdog, "_watchdog", dog)
    cut, calls = [], []

    class Stop:
        def kill(self, connection):
            cut.append(connection)
            for call in calls:
                call.end()
            dog.watch(Stop(), "third", 60).end()

        def cancel_target(self, connection):
            return connection

        def cancel(self, target, within):
            """Sent by a thread, which there is none of here."""

        cancel_again = cancel
        retire = cut.remove

    calls += [dog.watch(Stop(), name, 0.0) for name in ("first", "second")]
    late = calls[1].at
    for seconds in (0.0, watchdog.AGAIN, watchdog.GRACE):
        dog._look(late + seconds)
    assert (cut, dog.armed, dog._cancelled) == ([], {}, {})


def test_each_stopped_call_is_counted(switching, monkeypatch):
    """Also where two threads count at the same moment."""
    monkeypatch.setattr("guardrails._runtime.guard_log.run_later", lambda look, seconds: None)
    report = GuardLog("db")

    def count():
        for _ in range(1_000):
            report.note_stopped()

    together(*[count] * 4)
    assert report.stopped == 4_000


def test_two_requests_of_a_route_may_learn_at_once():
    """Threads of a WSGI server share what is known of a route."""
    stats, guards = RouteStats(), [Guard(name, max_concurrent_calls=1) for name in ("db", "cache", "other")]
    first, second, third = [guard.call_settings for guard in guards]

    class Touched(dict):
        """The guards of a request; read while another request notes a new guard."""

        def get(self, key, default=None):
            request = scope.RequestScope(None, lambda: 0.0, None)
            request.touched[third] = 0.0
            if third not in stats._counts:
                stats.learn(request, 0.0, served=True)
            return super().get(key, default)

    request = scope.RequestScope(None, lambda: 0.0, None)
    request.touched = Touched({first: 0.0, second: 0.0})
    stats.learn(request, 0.0, served=True)
    assert set(stats._counts) == {first, second, third}


ASKED = ((test_two_requests_of_a_route_may_learn_at_once.__code__, 0),)


def test_without_an_interpreter_lock_frames_of_running_threads_are_not_read(monkeypatch):
    """Its frames go while they are read. It is alive, and as far as known where it asked."""
    monkeypatch.setattr(frames, "has_gil", lambda: False)
    monkeypatch.setattr(referrers, "has_gil", lambda: False)
    inside, over = threading.Event(), threading.Event()

    def hold():
        thing = Thing()
        held.append(weakref.ref(thing))
        inside.set()
        over.wait(30)

    held = []
    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    try:
        assert frames.stack_of(thread.ident, ASKED) is ASKED
        assert not frames.in_driver(thread.ident)
        assert referrers.referrers([held[0]()]) == [None]
        own = frames.stack_of(threading.get_ident(), ASKED)
        assert own is not None
        assert own is not ASKED
    finally:
        over.set()
        thread.join(30)
    assert frames.stack_of(thread.ident, ASKED) is None


def test_without_an_interpreter_lock_only_frames_of_this_loops_tasks_are_read(monkeypatch):
    """A task of another loop may run just now."""
    monkeypatch.setattr(frames, "has_gil", lambda: False)

    async def hold(asked):
        await asked.wait()

    async def main():
        asked = asyncio.Event()
        task = asyncio.create_task(hold(asked))
        await asyncio.sleep(0)
        who = weakref.ref(task)
        here = frames.stack_of(who, ASKED)
        elsewhere = await asyncio.to_thread(frames.stack_of, who, ASKED)
        asked.set()
        await task
        return here, elsewhere, frames.stack_of(who, ASKED)

    here, elsewhere, ended = asyncio.run(main())
    assert here is not None
    assert here is not ASKED
    assert elsewhere is ASKED
    assert ended is None


def test_a_task_that_raises_is_logged_and_the_next_one_runs(caplog):
    """The one that raised does not run again."""
    keeper, runs, done = housekeeper._Housekeeper(), [], threading.Event()

    def broken():
        runs.append("broken")
        raise LookupError

    def twice():
        runs.append("twice")
        return 0.001 if runs.count("twice") < 2 else done.set()

    keeper.run_later(broken, 0.0)
    keeper.run_later(twice, 0.002)
    assert done.wait(10)
    assert runs == ["broken", "twice", "twice"]
    assert "a periodic task of a guard raised" in caplog.text


def test_a_pause_detectors_thread_ends_when_another_has_replaced_it():
    """In a child process, whose detector has a queue of its own."""
    detector = pauses.PauseDetector()
    detector._run(queue.SimpleQueue())
    assert (detector.last, detector.gap) == (None, pauses.ProcessPause(0.0, 0.0))
