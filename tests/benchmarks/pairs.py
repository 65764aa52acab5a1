"""A bare thing and a protected one, measured in turn: by the clock on the wall and by the processor's.

The wall says what a caller waits, and with a server at the other end it shakes by more than a guard costs.
The processor time of the measuring thread counts neither the server nor the machine's other processes.
"""

from __future__ import annotations

import collections
import statistics
import sys
import time

HEAD = f"{'':34}   bare us protected us  added us   ratio | cpu added us   ratio | + Python   + C"


class Stopwatch:
    """Microseconds per turn, on both clocks, between ``with`` and its end."""

    def __init__(self, turns):
        self._turns = turns

    def __enter__(self):
        self._wall, self._cpu = time.perf_counter_ns(), time.thread_time_ns()
        return self

    def __exit__(self, *_):
        cpu, wall = time.thread_time_ns() - self._cpu, time.perf_counter_ns() - self._wall
        self.us = wall / self._turns / 1e3, cpu / self._turns / 1e3


def timed(thing, body, turns):
    """Both times of a synchronous body."""
    with Stopwatch(turns) as watch:
        for _ in range(turns):
            body(thing)
    return watch.us


async def timed_async(thing, body, turns):
    """The same on an event loop."""
    with Stopwatch(turns) as watch:
        for _ in range(turns):
            await body(thing)
    return watch.us


def counted(measure, thing, turns=20):
    """Functions called in a turn: Python's, and C's. The same on every machine."""
    counts = collections.Counter()

    def note(_frame, event, _argument):
        counts[event] += 1

    def measure_once(turns):
        counts.clear()
        sys.setprofile(note)
        try:
            measure(thing, turns)
        finally:
            sys.setprofile(None)
        return counts["call"], counts["c_call"]

    few, many = measure_once(turns), measure_once(2 * turns)
    return [(after - before) / turns for before, after in zip(few, many, strict=True)]


def compare(name, bare, protected, measure, rounds, turns):
    """Alternates the two, prints a row of the table and returns it.

    Args:
        name: What is measured.
        bare: The thing as it is.
        protected: One like it, with a guard.
        measure: Called with a thing and a number of turns; gives microseconds per turn, wall and processor.
        rounds: How often each is measured.
        turns: What it does in one round.
    """
    measure(bare, turns), measure(protected, turns)
    pairs = [(measure(bare, turns), measure(protected, turns)) for _ in range(rounds)]

    def median(figure):
        return statistics.median(figure(*pair) for pair in pairs)

    calls = zip(counted(measure, bare), counted(measure, protected), strict=True)
    python, c = (round(after - before) for before, after in calls)
    row = {
        "what": name,
        "bare_us": median(lambda bare, _: bare[0]),
        "protected_us": median(lambda _, protected: protected[0]),
        "added_us": median(lambda bare, protected: protected[0] - bare[0]),
        "ratio": median(lambda bare, protected: protected[0] / bare[0]),
        "cpu_added_us": median(lambda bare, protected: protected[1] - bare[1]),
        "cpu_ratio": median(lambda bare, protected: protected[1] / bare[1]),
        "python_calls_added": python,
        "c_calls_added": c,
    }
    wall = f"{row['bare_us']:9.1f} {row['protected_us']:12.1f} {row['added_us']:9.1f} {row['ratio']:7.3f}"
    print(f"{name:34} {wall} | {row['cpu_added_us']:12.1f} {row['cpu_ratio']:7.3f} | {python:8} {c:5}")
    return row
