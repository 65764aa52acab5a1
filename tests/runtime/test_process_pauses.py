"""A process that is stopped while its slots are in use: the pause does not count as slowness."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from guardrails import BreakerPolicy
from guardrails._core.breaker import Breaker
from guardrails._core.outcome import Outcome
from guardrails._runtime.pauses import PauseDetector, ProcessPause

THREADS = """
import sys, threading, time
from guardrails import Guard
guard = Guard("db", max_concurrent_calls=10, timeout={timeout})
gone = threading.Event()
def work():
    guard.run(gone.wait)
threads = [threading.Thread(target=work) for _ in range(10)]
for thread in threads:
    thread.start()
time.sleep(0.4)
print("inside", flush=True)
sys.stdin.readline()
gone.set()
for thread in threads:
    thread.join()
seen = guard.snapshot()
print(seen.state, seen.slow, seen.failed, flush=True)
"""

TASKS = """
import asyncio, contextlib, sys, threading
from guardrails import Guard, CallTimeoutError
guard = Guard("db", max_concurrent_calls=10, timeout={timeout})
async def main():
    gone = asyncio.Event()
    async def work():
        with contextlib.suppress(CallTimeoutError):
            await guard.run_async(gone.wait)
    tasks = [asyncio.create_task(work()) for _ in range(10)]
    await asyncio.sleep(0.4)
    print("inside", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    gone.set()
    await asyncio.gather(*tasks)
    seen = guard.snapshot()
    print(seen.state, seen.slow, seen.failed, flush=True)
asyncio.run(main())
"""


def freeze(script, seconds):
    """Runs a script, stops it for some seconds in the middle of its calls, and returns its last word."""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "inside\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(seconds)
        process.stdin.write("\n")
        process.stdin.flush()
        os.kill(process.pid, signal.SIGCONT)
        return process.stdout.read().split()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("script", [THREADS, TASKS], ids=["threads", "tasks"])
def test_a_stopped_process_opens_no_circuit(script):
    """Ten calls in flight, stopped for three seconds."""
    assert freeze(script.format(timeout=10.0), 3.0) == ["closed", "0", "0"]


def test_a_deadline_that_passed_during_a_pause_is_no_failure():
    """The calls end with CallTimeoutError all the same."""
    state, _, failed = freeze(TASKS.format(timeout=1.5), 3.0)
    assert (state, failed) == ("closed", "0")


def test_a_pause_is_taken_out_of_durations_once():
    """A call from before it ages only while the process runs; one from within it starts at its end."""
    breaker = Breaker(BreakerPolicy(), lambda: 0.5)
    first = breaker.begin(0.0)
    second = breaker.begin(2.0)
    breaker.exclude_pause(0.5, 3.5)
    breaker.exclude_pause(0.5, 3.5)
    assert breaker.in_flight == {first: 3.0, second: 3.5}
    breaker.exclude_pause(0.5, 4.0)  # the same gap, seen to its end
    assert breaker.in_flight == {first: 3.5, second: 4.0}
    assert breaker.end(first, Outcome.SUCCESS, 4.4).slow is False
    breaker.tick(5.1)
    assert list(breaker.overdue) == [second]


def test_a_late_beat_is_a_pause_of_at_most_a_minute():
    """A delay of one second is a busy machine."""
    pause_detector = PauseDetector()
    pause_detector._until = 1e9
    pause_detector._beat(100.0)
    pause_detector._beat(101.0)
    assert pause_detector.latest(101.9) == ProcessPause(0.0, 0.0)
    assert pause_detector.latest(103.0) == ProcessPause(101.0, 103.0)
    pause_detector._beat(103.0)
    assert pause_detector.latest(103.2) == ProcessPause(101.0, 103.0)
    pause_detector._beat(300.0)
    assert pause_detector.latest(300.0) == ProcessPause(240.0, 300.0)


def test_the_detector_sleeps_without_calls():
    """It then reports no pause, and no call is in flight."""
    pause_detector = PauseDetector()
    pause_detector._until = 100.0
    pause_detector._beat(99.9)
    pause_detector._beat(100.1)
    assert pause_detector.last is None
    assert pause_detector.latest(500.0) == ProcessPause(0.0, 0.0)
