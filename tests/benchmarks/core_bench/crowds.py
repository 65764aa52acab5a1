"""Many threads on one guard. Knows loops and contenders.

The decorator is used, because every contender has one.
"""

from __future__ import annotations

import statistics
import time

from core_bench.calls import answers
from core_bench.contender import Contender
from core_bench.loops import crowd_loop
from core_bench.timing import BARE, Cost, Effort, compare

THREADS = (1, 2, 4, 8)
SLEEPERS = (1, 8)
PARALLEL = 8


def sleeps(number):
    """A dependency that takes a millisecond."""
    time.sleep(0.001)
    return number


def sleeps_long(number):
    """A dependency that takes fifty."""
    time.sleep(0.05)
    return number


def busy(contenders: list[Contender], effort: Effort, threads: int) -> dict[str, Cost]:
    """Nothing but guarded calls, in so many threads; nanoseconds of wall time per call of all together."""
    return compare(_loops(contenders, answers, threads), effort)


def sleeping(contenders: list[Contender], effort: Effort, threads: int) -> dict[str, Cost]:
    """The same around a millisecond of sleep: what is left of the cost in a call that does something."""
    return compare(_loops(contenders, sleeps, threads), effort)


def parallel(contenders: list[Contender], repetitions: int) -> dict[str, dict[str, float]]:
    """Milliseconds that eight calls of 50 ms take, made at once: 50 if nobody waits, 400 if all do."""
    loops = _loops(contenders, sleeps_long, PARALLEL)
    taken: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repetitions):
        for name, loop in loops.items():
            taken[name].append(loop(PARALLEL) / 1e6)
    return {name: {"ms": statistics.median(times)} for name, times in taken.items()}


def convoys(contenders: list[Contender], repetitions: int, calls: int) -> dict[str, dict[str, float]]:
    """Nanoseconds of processor time per call, in one thread and in eight.

    Where each call takes a lock, the threads wait for it one after the other (a lock convoy), and switching
    between them costs more than the calls.
    """
    ones, crowds = _loops(contenders, answers, 1), _loops(contenders, answers, PARALLEL)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ones}
    for _ in range(repetitions):
        for name in ones:
            spent[name].append((_processor_time(ones[name], calls), _processor_time(crowds[name], calls)))
    found = {}
    for name, pairs in spent.items():
        one, crowd = (statistics.median(times) for times in zip(*pairs, strict=True))
        found[name] = {"1 thread": one, f"{PARALLEL} threads": crowd, "times": crowd / one}
    return found


def _processor_time(loop, calls: int) -> float:
    began = time.process_time_ns()
    loop(calls)
    return (time.process_time_ns() - began) / calls


def _loops(contenders, fn, threads):
    found = {BARE: crowd_loop(fn, threads)}
    for contender in contenders:
        decorate = contender.ways(contender.make("closed"))["sync", "decorator"]
        found[contender.name] = crowd_loop(decorate(fn), threads)
    return found
