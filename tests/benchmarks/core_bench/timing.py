"""How a cost is measured. Knows loops, not what they call.

Contenders take turns inside each repetition, so that a machine that slows down slows all of them; the bare
call of the same repetition is subtracted before anything is averaged; the median over the repetitions
counts, and the quartiles say how far to trust it.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

Loop = Callable[[int], float]
"""Makes so many calls and returns the nanoseconds they took together."""

BARE = "bare call"
OURS = "Guard"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look.

    Attributes:
        repetitions: Of the round of all contenders.
        slice_ns: Nanoseconds per contender in each.
        warm_ns: Nanoseconds per contender before the first; CPython specialises code as it runs.
    """

    repetitions: int
    slice_ns: int
    warm_ns: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What one contender costs per call, in nanoseconds; medians over the repetitions.

    Attributes:
        whole: The whole call.
        over_bare: What it adds to the bare call of the same repetition.
        low: A quarter of the repetitions added less than this.
        high: A quarter of the repetitions added more than this.
        times_bare: The whole call in bare calls.
        times_ours: What it adds, in what the guard adds; None where the guard takes no part.
    """

    whole: float
    over_bare: float
    low: float
    high: float
    times_bare: float
    times_ours: float | None


def compare(loops: Mapping[Hashable, Loop], effort: Effort) -> dict[Any, Cost]:
    """Measures the loops, of which one is the bare call, against that one and the guard's."""
    readings = rotate(loops, effort)
    bare = readings[BARE]
    added = {
        name: [time - base for time, base in zip(times, bare, strict=True)]
        for name, times in readings.items()
    }
    return {name: _cost(times, bare, added[name], added.get(OURS)) for name, times in readings.items()}


def rotate(loops: Mapping[Hashable, Loop], effort: Effort) -> dict[Any, list[float]]:
    """Nanoseconds per call of each loop in each repetition; the loop that begins changes every time."""
    names = list(loops)
    with _no_collections():
        turns = {name: _turns_for(loop, effort) for name, loop in loops.items()}
        readings: dict[Any, list[float]] = {name: [] for name in names}
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


def _cost(times: list[float], bare: list[float], added: list[float], ours: list[float] | None) -> Cost:
    low, over_bare, high = quartiles(added)
    return Cost(
        whole=statistics.median(times),
        over_bare=over_bare,
        low=low,
        high=high,
        times_bare=_median_ratio(times, bare),
        times_ours=None if ours is None else _median_ratio(added, ours),
    )


def _median_ratio(values: list[float], bases: list[float]) -> float:
    """Of ratios within one repetition, so that a machine that changed its speed cancels out."""
    return statistics.median(value / (base or 1.0) for value, base in zip(values, bases, strict=True))


def _turns_for(loop: Loop, effort: Effort) -> int:
    """How many calls fill one slice, found by trying, which warms the code up."""
    turns, spent = 1, 0.0
    while True:
        taken = max(loop(turns), 1.0)
        spent += taken
        if taken >= effort.slice_ns / 2 and spent >= effort.warm_ns:
            return max(1, round(turns * effort.slice_ns / taken))
        if taken < effort.slice_ns / 2:
            turns *= 2


@contextlib.contextmanager
def _no_collections():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
