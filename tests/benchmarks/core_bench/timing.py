"""How a cost is measured. Knows loops, not what they call.

Contenders take turns inside each repetition, so that a machine that slows down slows all of them; the bare
call of the same repetition is subtracted before anything is averaged; the median over the repetitions
counts, and the quartiles say how far to trust it.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Loop = Callable[[int], float]
"""Makes so many calls and returns the nanoseconds they took together."""

BARE = "bare call"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look: repetitions, and nanoseconds per contender in each."""

    repetitions: int
    slice_ns: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What one contender costs per call, in nanoseconds; medians over the repetitions.

    Attributes:
        whole: The whole call.
        over_bare: What it adds to the bare call of the same repetition.
        low: A quarter of the repetitions added less than this.
        high: A quarter of the repetitions added more than this.
        times_bare: The whole call in bare calls.
    """

    whole: float
    over_bare: float
    low: float
    high: float
    times_bare: float


def compare(loops: Mapping[str, Loop], effort: Effort) -> dict[str, Cost]:
    """Measures the loops, of which one is the bare call, against that one."""
    readings = rotate(loops, effort)
    bare = readings[BARE]
    return {name: _cost(times, bare) for name, times in readings.items()}


def rotate(loops: Mapping[str, Loop], effort: Effort) -> dict[str, list[float]]:
    """Nanoseconds per call of each loop in each repetition; the loop that begins changes every time."""
    names = list(loops)
    with _no_collections():
        turns = {name: _turns_for(loop, effort.slice_ns) for name, loop in loops.items()}
        readings: dict[str, list[float]] = {name: [] for name in names}
        for repetition in range(effort.repetitions):
            first = repetition % len(names)
            for name in names[first:] + names[:first]:
                readings[name].append(loops[name](turns[name]) / turns[name])
    return readings


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _cost(times: list[float], bare: list[float]) -> Cost:
    low, over_bare, high = quartiles([time - base for time, base in zip(times, bare, strict=True)])
    times_bare = statistics.median(time / base for time, base in zip(times, bare, strict=True))
    return Cost(statistics.median(times), over_bare, low, high, times_bare)


def _turns_for(loop: Loop, slice_ns: int) -> int:
    """How many calls fill one slice, found by doubling; it warms the code up as well."""
    turns = 1
    while (taken := loop(turns)) < slice_ns / 2:
        turns *= 2
    return max(1, round(turns * slice_ns / max(taken, 1)))


@contextlib.contextmanager
def _no_collections():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
