"""What every test may ask for, and what every test is asked at its end: that nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
import weakref
from functools import partial

import pytest
from hypothesis import settings

from guardrails import Guard, _deadline, _fork
from guardrails._door import Door
from guardrails.testing.clock import FakeClock

settings.register_profile("suite", deadline=None, max_examples=60)
settings.load_profile("suite")

_seen = weakref.WeakSet()
"""Doors of earlier tests: a failed test's traceback may keep its doors alive, and must not fail the next."""


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """After each test no slot is taken, nobody waits, no deadline holds, and no thread runs on."""
    _seen.update(_doors())
    threads = set(threading.enumerate())
    yield
    for door in _doors():
        if door not in _seen:
            slots = door.gate.bulkhead
            assert (slots.taken, len(slots.queue)) == (0, 0), (
                f"{door.name}: {slots.taken} slots not given back"
            )
            assert not door.gate.breaker.in_flight, f"{door.name}: calls that never ended"
    assert _deadline.current() is None, "a deadline was left behind"
    for thread in set(threading.enumerate()) - threads:
        if not thread.daemon:
            thread.join(5)
            assert not thread.is_alive(), f"{thread.name} runs on"


def _doors():
    return [survivor for survivor in list(_fork._survivors) if isinstance(survivor, Door)]


@pytest.fixture
def clock():
    """A clock that starts at zero."""
    return FakeClock()


@pytest.fixture
def make_guard(clock):
    """Builds guards on the fake clock, without jitter or timeout unless a test wants them."""

    def make(name="db", **options):
        settings = {"max_concurrent_calls": 100, "timeout": None, "clock": clock, "random": lambda: 0.5}
        return Guard(name, **(settings | options))

    return make


@pytest.fixture(params=["sync", "async"])
def run(request):
    """Runs each behaviour twice: in a thread, and in an asyncio task."""
    if request.param == "sync":
        yield SyncFlavour()
        return
    with asyncio.Runner() as runner:
        yield AsyncFlavour(runner)
        left = asyncio.all_tasks(runner.get_loop())
        assert not left, f"tasks run on: {left}"


class SyncFlavour:
    """Calls of a thread."""

    is_async = False

    def __call__(self, guard, fn, *args, **kwargs):
        """Calls a scripted function through the guard."""
        return guard.run(fn, *args, **kwargs)

    def start(self, guard, timeout=None):
        """Begins a call that stays under way until it is told to ``finish``."""
        call = guard.call(timeout)
        call.__enter__()
        return partial(_finish, lambda: None, call.__exit__)

    def decorated(self, fn):
        """Makes a scripted function one of this flavour."""
        return fn

    def result(self, value):
        """What a call of a decorated function gives in the end."""
        return value


class AsyncFlavour:
    """Calls of asyncio tasks, all in one loop."""

    is_async = True

    def __init__(self, runner):
        self._runner = runner

    def __call__(self, guard, fn, *args, **kwargs):
        """See SyncFlavour."""
        return self._runner.run(guard.run_async(self.decorated(fn), *args, **kwargs))

    def start(self, guard, timeout=None):
        """See SyncFlavour."""
        call = guard.call(timeout)
        self._runner.run(call.__aenter__())
        return partial(_finish, self._runner.run, call.__aexit__)

    def decorated(self, fn):
        """See SyncFlavour."""

        async def scripted(*args, **kwargs):
            return fn(*args, **kwargs)

        return scripted

    def result(self, value):
        """See SyncFlavour."""
        return self._runner.run(value)


def _finish(wait, leave, error=None):
    ending = leave(None if error is None else type(error), error, None)
    if ending is not None:
        wait(ending)
