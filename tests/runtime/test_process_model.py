"""Guards under gevent, uvloop, servers and subinterpreters, and at the end of a process.

Each check is a process of its own, with a script of ``tests/processes``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.paths import PACKAGE, PROCESSES
from support.polling import wait_until
from support.server_process import Server


def run(*words, **variables):
    """Runs a script, in which every warning is an error, to its end; without what guards write to the log."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", *words],
        cwd=PROCESSES,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    written = ended.stderr.splitlines(keepends=True)
    ended.stderr = "".join(line for line in written if not line.startswith(("circuit ", "guard ", "pool ")))
    return ended


def needs(module):
    """Skips, visibly, where a library has no build for this Python."""
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


@pytest.mark.sampled(2)
@needs("gevent")
@pytest.mark.parametrize("check", ["waiting", "deadlines", "endings", "opening", "patched_late"])
def test_a_guard_among_greenlets(check):
    """P4: a waiting greenlet does not stop the hub, and however a greenlet ends, its slot is freed."""
    ended = run("under_gevent.py", check)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("fine\n", "", 0)


@pytest.mark.sampled(1)
@needs("gevent")
@pytest.mark.parametrize("check", ["redis", "psycopg"])
def test_a_guarded_pool_among_greenlets(check):
    """P4: real servers that hang; deadlines hold and the hub goes on."""
    ended = run("under_gevent.py", check)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("fine\n", "", 0)


@pytest.mark.sampled(2)
@needs("uvloop")
@pytest.mark.parametrize("check", ["timers", "cancellation", "deadlines", "loops_and_threads"])
def test_a_guard_on_uvloop(check):
    """P5: its loops have their own clock and their own way to be woken."""
    ended = run("under_uvloop.py", check)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("fine\n", "", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the C library of Linux")
@pytest.mark.parametrize("check", ["no_calls", "one_reset"])
def test_a_child_that_c_code_has_forked(check):
    """It runs none of Python's hooks: it notices the fork at its first step and starts without calls."""
    ended = run("forked_in_c.py", check)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("fine\n", "", 0)


@pytest.mark.sampled(1)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("check", ["pool", "blocking_pool", "single_connection"])
def test_a_guarded_redis_client_is_forked(check):
    """P1, D9: parent and child share no socket, and the child starts with no slot taken."""
    ended = run("forked_redis.py", check)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("fine\n", "", 0)


def test_a_process_ends_while_guards_are_in_use():
    """P9: it prints nothing and does not hang; guards still work in exit handlers."""
    began = time.monotonic()
    ended = run("-X", "dev", "at_exit.py")
    assert ended.stdout.splitlines() == [
        "main is over",
        "at exit: DeadlineSpentError served",
        "collected: <Guard 'idle' closed, 1/2 busy, 0 waiting>",
    ]
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert time.monotonic() - began < 60


def test_a_wall_clock_that_leaps_changes_nothing():
    """SM1: neither an open circuit nor a closed one, no deadline, no budget, no drop-in."""
    ended = run("wall_clock.py")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("fine\n", "", 0)


def test_a_second_interpreter_has_guards_of_its_own():
    """P7: it shares neither slots nor deadlines with the first one."""
    ended = run("subinterpreter.py")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("fine\n", "", 0)


def test_the_threads_of_the_library_inherit_no_context():
    """A free-threaded build, or this switch, gives a new thread its starter's context variables."""
    ended = run("-X", "thread_inherit_context=1", "inherited_context.py")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("fine\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_package_imported_twice_is_two_packages():
    """P10: reloaded, and imported again after its removal from sys.modules; a fork handles both."""
    ended = run("imported_twice.py")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("fine\n", "", 0)


@pytest.fixture(scope="module")
def story():
    """The behaviour of a guard in a process started as usual."""
    ended = run("switches.py", str(PACKAGE.parent))
    assert (ended.stdout.split()[0], ended.stderr, ended.returncode) == ("True", "", 0)
    return ended.stdout


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("switches", "variables"),
    [
        (["-O"], {}),
        (["-OO"], {}),
        (["-X", "dev"], {}),
        (["-b", "-X", "utf8=0"], {"PYTHONASYNCIODEBUG": "1", "PYTHONDONTWRITEBYTECODE": "1"}),
    ],
    ids=["O", "OO", "dev", "asyncio_debug"],
)
def test_a_guard_does_the_same_under_every_interpreter_option(story, switches, variables):
    """P10: no rule depends on an assertion or a docstring, and no mode warns."""
    ended = run(*switches, "switches.py", str(PACKAGE.parent), **variables)
    assert (ended.stdout, ended.stderr, ended.returncode) == (story, "", 0)


def test_a_copy_of_the_package_elsewhere_does_the_same(story, tmp_path):
    """P10: vendored, as a directory that comes first on the path."""
    shutil.copytree(PACKAGE, tmp_path / "guardrails", ignore=shutil.ignore_patterns("__pycache__"))
    ended = run("switches.py", str(tmp_path), PYTHONPATH=str(tmp_path))
    assert (ended.stdout, ended.stderr, ended.returncode) == (story, "", 0)


@pytest.fixture
def preloaded(tmp_path):
    """A gunicorn whose two workers were forked after the application had been imported."""
    command = "gunicorn preloaded:app --preload --workers 2 --bind 127.0.0.1:{port}"
    with Server("gunicorn", command, tmp_path / "log", folder=PROCESSES) as server:
        yield server.wait("/")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(180)
def test_workers_forked_from_a_full_guard_start_empty(preloaded):
    """P1: no slot, no waiter and no lock of the master's; and each has a circuit of its own."""
    first = preloaded.ask("/")
    assert (first["in_use"], first["waiting"], first["oldest"], first["part"]) == (0, 0, None, 0)
    workers = {first["pid"]}

    def both_served():
        used = preloaded.ask("/use")
        assert (used["in_use"], used["part"], used["state"]) == (0, 0, "closed")
        workers.add(used["pid"])
        return len(workers) == 2

    wait_until(both_served, 60)
    opened = preloaded.ask("/open")["pid"]
    states = {}

    def both_shown():
        shown = preloaded.ask("/")
        states[shown["pid"]] = shown["state"]
        return len(states) == 2

    wait_until(both_shown, 60)
    assert states == {pid: "forced_open" if pid == opened else "closed" for pid in workers}


@pytest.fixture
def draining(tmp_path):
    """A uvicorn; the test ends it."""
    command = "uvicorn draining:app --host 127.0.0.1 --port {port} --lifespan off"
    with Server("uvicorn", command, tmp_path / "log", folder=PROCESSES) as server:
        yield server.wait("/")


def test_a_stopping_server_serves_running_and_waiting_requests(draining):
    """P3: the queue drains slot by slot, and then the process ends."""
    with ThreadPoolExecutor(3) as clients:
        slow = [clients.submit(draining.ask, "/slow") for _ in range(3)]
        wait_until(lambda: draining.ask("/") == {"in_use": 1, "waiting": 2}, 30)
        draining.process.send_signal(signal.SIGTERM)
        ends = [answer.result(60) for answer in slow]
    assert sorted((now["waiting"], now["in_use"]) for now in ends) == [(0, 0), (0, 1), (1, 1)]
    draining.process.wait(30)
    assert "Traceback" not in draining.log.read_text()
