"""What every test may ask for, and what every test is asked at its end: that nothing is left behind."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import signal
import sys
import threading
import weakref

import pytest
from hypothesis import Phase, settings

from guardrails import Guard
from guardrails._guard.locked_gate import all_gates
from guardrails._runtime import scope
from guardrails.testing.clock import FakeClock
from support import selection
from support.flavours import AsyncFlavour, SyncFlavour

pytest_plugins = ["support.server_fixtures"]

# The processes of a run, and the hundreds that its tests start, import the same modules: compile them once.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("full", deadline=None, max_examples=200)
settings.register_profile(
    "mutants", deadline=None, max_examples=12, derandomize=True, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_configure():
    """Lets Ctrl-C reach the processes that tests start, also where a script runs the tests in the background.

    A shell makes such a command ignore it, and every process inherits that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Leaves the thousands of collected tests out of every later collection of garbage.

    A test that called ``gc.unfreeze`` would bring them back: half a second for each collection from then on.
    """
    config = session.config
    worker = getattr(config, "workerinput", None)
    if worker and list(config.args) == list(config.getini("testpaths")):
        share = int(worker["workerid"].removeprefix("gw")) / worker["workercount"]
        config.args = selection.folders(config.rootpath / "tests", share)
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        if worker:
            atexit.register(os._exit, 0)  # to take all tests apart would cost each worker two seconds
        else:
            atexit.register(gc.unfreeze)  # lets them go in the usual order, after pytest's own collections


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks before pytest chooses by marks, and deals the long ones out when the rest has been shuffled."""
    items.sort(key=lambda item: item.path)  # the same order in each process; see selection.folders
    selection.mark(items)
    yield
    selection.deal(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


_seen = weakref.WeakSet()
"""Gates of earlier tests: a failed test's traceback may keep its gates alive, and must not fail the next."""


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """After each test no slot is taken, nobody waits, no deadline holds, and no thread runs on."""
    _seen.update(all_gates())
    threads = set(threading.enumerate())
    yield
    for gate in all_gates():
        if gate not in _seen:
            # Its line in the log would come in the middle of the next test.
            gate.report.gates = type(gate.report.gates)()
            gate.report.stopped = gate.report.sums.stops = 0
            if not gate.core.enforces:
                gate.step(
                    gate.core.set_mode, "enforce"
                )  # what would have happened later has no slot any more
            slots = gate.core.bulkhead
            assert (slots.taken, len(slots.queue)) == (0, 0), f"{gate.name}: {slots.taken} slots not released"
            assert not gate.core.outside, f"{gate.name}: calls without a slot that never ended"
            assert not gate.core.breaker.in_flight, f"{gate.name}: calls that never ended"
    assert scope.current() is None, "a deadline was left behind"
    scope.swap(None)  # a scope that ended in another context may still be set here, and costs a look
    for thread in set(threading.enumerate()) - threads:
        if not thread.daemon:
            thread.join(5)
            assert not thread.is_alive(), f"{thread.name} runs on"


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
