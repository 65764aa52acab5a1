"""The vectors of gobreaker's own suite that a rolling window can be asked, and one of Semian's.

Where a documented decision of ours differs: a round of probes is judged by its rate and not by its first
failure, and there is no window that starts afresh, so a result counts when it comes, unless the circuit has
changed since.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from guardrails import BreakerPolicy
from support.calls import abandon, be_refused, fail, give_up, play, succeed


def rolling(**options):
    """Trips at 60 % of at least three calls of the last 30 s; open for 90 s; three probes."""
    settings = {
        "failure_rate_threshold": 0.6,
        "sliding_window_size": 30,
        "minimum_number_of_calls": 3,
        "wait_duration_in_open_state": 90,
        "open_jitter": 0,
        "permitted_calls_in_half_open_state": 3,
    }
    return BreakerPolicy(**(settings | options))


def in_a_row(failures, **options):
    """Trips after so many failures in a row, and for nothing else; open for 60 s; one probe."""
    return rolling(
        consecutive_failures=failures,
        minimum_number_of_calls=10**6,
        wait_duration_in_open_state=60,
        permitted_calls_in_half_open_state=1,
        **options,
    )


def figures(guard):
    """Successes and failures in the window, and who was abandoned in all."""
    now = guard.snapshot()
    return now.calls - now.failures, now.failures, now.abandoned


def test_gb1_more_than_five_in_a_row_trip(run, make_guard):
    """GB1: five, a success, and the count starts again."""
    guard = make_guard(breaker=in_a_row(6))
    play(run, guard, "FFFFF S F FFFF")
    assert guard.state == "closed"
    fail(run, guard)
    assert guard.state == "open"


def test_gb1b_a_failed_probe_opens_for_a_whole_period_again(run, make_guard, clock):
    """GB1b: at 59.999 s refused; at 60.999 s a probe that fails; 60 s later one that does not."""
    guard = make_guard(breaker=in_a_row(6))
    fail(run, guard, times=6)
    clock.advance(59.999)
    be_refused(run, guard)
    clock.advance(1)
    fail(run, guard)
    assert guard.state == "open"
    clock.advance(60)
    succeed(run, guard)
    assert (guard.state, guard.snapshot().calls) == ("closed", 0)


def test_gb3_a_round_of_three_probes(run, make_guard, clock):
    """GB3: abandoned probes decide nothing, a failure reopens, a fourth is one too many, three pass."""
    guard = make_guard(breaker=rolling(failure_rate_threshold=0.3))
    fail(run, guard, times=3)
    clock.advance(90)
    abandon(run, guard, times=4)
    assert guard.state == "half_open"
    fail(run, guard)
    assert guard.state == "open"
    clock.advance(90)
    succeed(run, guard, times=2)
    finish = run.start(guard)
    be_refused(run, guard)
    finish()
    assert (guard.state, guard.snapshot().calls) == ("closed", 0)


def test_gb4_a_rolling_window_of_ten_buckets(run, make_guard, clock):
    """GB4: forty calls over half a minute; the first bucket is gone with the tenth after it."""
    guard = make_guard(breaker=rolling())
    seen = []
    story = ["SFX" * 5, "S", "SX", "XS", "F", *["SF"] * 6, "F", "FFFFF"]
    for pause, calls in zip([0, 3, 2, 2, 2, *[3] * 7, 0], story, strict=True):
        clock.advance(pause)
        play(run, guard, calls)
        seen.append(figures(guard))
    assert seen == [
        (5, 5, 5),
        (6, 5, 5),
        (7, 5, 6),
        (8, 5, 7),
        (8, 6, 7),
        *[(9 + i, 7 + i, 7) for i in range(6)],
        (9, 8, 7),
        (9, 13, 7),
    ]
    assert guard.state == "closed", "13 of 22 is less than 60 %"
    fail(run, guard)
    assert guard.state == "open", "14 of 23 is not"


def test_gb8_a_hundred_thousand_calls_of_ten_threads_are_counted_one_by_one(make_guard):
    """GB8: every other one is abandoned."""
    guard = make_guard(breaker=rolling())

    def work():
        for _ in range(5000):
            guard.run(int)
            with contextlib.suppress(asyncio.CancelledError):
                guard.run(give_up)

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = guard.snapshot()
    assert (now.admitted, now.succeeded, now.abandoned, now.failed) == (100_000, 50_000, 50_000, 0)
    assert (now.in_use, now.state) == (0, "closed")


@pytest.mark.parametrize(
    ("size", "threshold", "failures_at", "state"),
    [
        (5, 2, [0, 6], "closed"),
        (5, 3, [0, 5, 6], "closed"),
        (10, 3, [0, 5, 6], "open"),
    ],
)
def test_se1_only_failures_of_the_window_count(run, make_guard, clock, size, threshold, failures_at, state):
    """SE1: Semian's threshold is a number of errors within so many seconds."""
    guard = make_guard(
        breaker=rolling(sliding_window_size=size, minimum_number_of_calls=threshold, failure_rate_threshold=1)
    )
    for at in failures_at:
        clock.set(at)
        fail(run, guard)
    assert guard.state == state
