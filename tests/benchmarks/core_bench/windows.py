"""What a call costs as the window grows, and after a pause. Knows how each library is told its window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from core_bench import peers
from core_bench.calls import answers
from core_bench.contender import SLOTS, Contender
from core_bench.loops import call_loop, paused_loop
from core_bench.timing import BARE, Effort, compare
from guardrails import BreakerPolicy, Guard
from guardrails.testing.clock import FakeClock

WINDOW = 60
"""Seconds; the peers keep a bucket for each, ours ten slices."""

PAUSES = {"none": 0.0, "1 s": 1.0, "1 h": 3600.0}

Grid = dict[str, dict[str, float]]
"""Contender, column, figure."""


@dataclass(frozen=True, slots=True)
class InterlockClock:
    """Interlock asks its clock by method."""

    monotonic: Callable[[], float]


def _guard(kind, size, **options):
    policy = BreakerPolicy(sliding_window_type=kind, sliding_window_size=size)
    return Guard("bench", max_concurrent_calls=SLOTS, breaker=policy, **options)


def _interlock_by_time(size, clock=None):
    by_time = import_module("interlock").WindowType.TIME_BASED
    options = {} if clock is None else {"clock": InterlockClock(clock)}
    return peers.interlock("closed", window_type=by_time, window_size=size, **options)


COUNTED = {
    "Guard": lambda size: _guard("count", size),
    "interlock-cb": lambda size: peers.interlock("closed", window_size=size),
    "pyresilience": lambda size: peers.pyresilience("closed", sliding_window_size=size),
}
"""Who keeps the last so many calls."""

TIMED = {
    "Guard": lambda size, **clock: _guard("time", size, **clock),
    "interlock-cb": _interlock_by_time,
    "nopanic": lambda size, **clock: peers.nopanic("closed", window=size, window_buckets=size, **clock),
}
"""Who keeps the last so many seconds."""


def by_count(contenders: list[Contender], effort: Effort, sizes: Sequence[int]) -> Grid:
    """Nanoseconds over the bare call with a full window of so many calls."""
    loops = {BARE: call_loop(answers)}
    for contender in _those_in(contenders, COUNTED):
        for size in sizes:
            fn = _decorated(contender, COUNTED[contender.name](size))
            for _ in range(size):
                fn(7)
            loops[contender.name, f"{size:,}"] = call_loop(fn)
    return _grid(compare(loops, effort))


def by_time(contenders: list[Contender], effort: Effort, sizes: Sequence[int]) -> Grid:
    """Nanoseconds over the bare call with a window of so many seconds, by the real clock."""
    loops = {BARE: call_loop(answers)}
    for contender in _those_in(contenders, TIMED):
        for size in sizes:
            fn = _decorated(contender, TIMED[contender.name](size))
            loops[contender.name, f"{size:,} s"] = call_loop(fn)
    return _grid(compare(loops, effort))


def after_pauses(contenders: list[Contender], effort: Effort) -> Grid:
    """Nanoseconds over the bare call when each call comes so long after the one before.

    The clock is moved by hand, which costs the bare loop as much; reading it costs more than the real one.
    """
    loops = {BARE: paused_loop(answers, FakeClock(), 1.0)}
    for contender in _those_in(contenders, TIMED):
        for column, pause in PAUSES.items():
            clock = FakeClock()
            fn = _decorated(contender, TIMED[contender.name](WINDOW, clock=clock))
            loops[contender.name, column] = paused_loop(fn, clock, pause)
    return _grid(compare(loops, effort))


def _those_in(contenders, windows):
    return [contender for contender in contenders if contender.name in windows]


def _decorated(contender, instance):
    return contender.ways(instance)["sync", "decorator"](answers)


def _grid(costs) -> Grid:
    grid: Grid = {}
    for key, cost in costs.items():
        if key != BARE:
            name, column = key
            grid.setdefault(name, {})[column] = cost.over_bare
    return grid
