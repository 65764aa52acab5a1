"""The windows: what they count, what they forget, and that the totals equal the sums of the parts."""

from __future__ import annotations

import itertools
import math
import random
import time
import tracemalloc
from collections import deque
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails._core.window import FAILED, SLICES, SLOW, CountWindow, TimeWindow

BOTH = FAILED | SLOW
MARKS = st.sampled_from([0, FAILED, SLOW, BOTH])


def figures(window):
    return window.calls, window.failures, window.slow


@pytest.mark.parametrize(
    ("size", "marks", "expected"),
    [
        (1, [FAILED], (1, 1, 0)),
        (1, [FAILED, 0], (1, 0, 0)),
        (1, [0, BOTH], (1, 1, 1)),
        (2, [FAILED, SLOW, BOTH], (2, 1, 2)),
        (3, [FAILED, 0], (2, 1, 0)),
        (4, [FAILED, 0, 0, 0, 0], (4, 0, 0)),
    ],
)
def test_a_count_window_remembers_the_last_calls(size, marks, expected):
    """The oldest goes when the window is full."""
    window = CountWindow(size)
    for mark in marks:
        window.add(mark)
    assert figures(window) == expected


@given(st.integers(1, 12), st.lists(MARKS, max_size=130))
def test_a_count_window_equals_a_list(size, marks):
    """Its sums are those of the last ``size`` marks, however often the ring has been filled."""
    window = CountWindow(size)
    for count, mark in enumerate(marks, 1):
        window.add(mark)
        last = marks[max(0, count - size) : count]
        assert figures(window) == (
            len(last),
            sum(mark & FAILED for mark in last),
            sum(bool(mark & SLOW) for mark in last),
        )


def test_a_late_mark_changes_only_a_call_in_the_count_window():
    """It counts once."""
    window = CountWindow(2)
    first = window.add(SLOW)
    window.add_mark(first, FAILED)
    window.add_mark(first, FAILED)
    assert figures(window) == (1, 1, 1)
    window.add(0)
    window.add(0)
    window.add_mark(first, BOTH)
    assert figures(window) == (2, 0, 0)
    window.add_mark(99, FAILED)
    assert figures(window) == (2, 0, 0)


def test_positions_from_before_a_clear_are_invalid():
    """A mark at such a position changes nothing."""
    for window in (CountWindow(3), TimeWindow(10)):
        window.advance(0)
        waiter = window.add(SLOW)
        window.clear()
        assert figures(window) == (0, 0, 0)
        if isinstance(window, CountWindow):
            window.add_mark(waiter, FAILED)
            assert figures(window) == (0, 0, 0)
            window.add(0)
            window.add_mark(waiter, FAILED)
            assert figures(window) == (1, 0, 0)


def test_time_alone_makes_no_call_old_in_a_count_window():
    """``advance`` does nothing."""
    window = CountWindow(3)
    window.add(FAILED)
    window.advance(1e12)
    assert figures(window) == (1, 1, 0)
    assert window.until == math.inf


@pytest.mark.parametrize(
    ("gap", "remembered"),
    [
        (0.999, 1),  # the same slice
        (1, 1),
        (8.999, 1),
        (9.999, 1),  # the tenth slice still counts
        (10, 0),  # the eleventh does not
        (10.5, 0),
        (11, 0),
        (20, 0),
        (3.2e8, 0),  # ten years
        (-5, 1),  # a clock that went back leaves everything as it is
        (-1e6, 1),
    ],
)
def test_a_time_window_forgets_in_slices(gap, remembered):
    """Ten slices, the current one included."""
    window = TimeWindow(SLICES)
    window.advance(0)
    window.add(BOTH)
    window.advance(gap)
    assert figures(window) == (remembered,) * 3


def test_a_slice_ends_exactly_at_its_edge():
    """A nanosecond before it, a call belongs to the old slice, at it to the new one; to one of them only."""
    for at, gone in ((math.nextafter(1, 0), 10), (1.0, 11)):
        window = TimeWindow(SLICES)
        window.advance(at)
        window.add(0)
        window.advance(math.nextafter(gone, 0))
        assert window.calls == 1
        window.advance(gone)
        assert window.calls == 0


def test_a_thousand_steps_back_lose_nothing():
    """No slice is wiped by a clock that jitters (resilience4j loses one for each)."""
    window = TimeWindow(10)
    now = 1000.0
    window.advance(now)
    for _ in range(1000):
        window.add(FAILED)
        window.advance(now - 3)
        window.advance(now)
    assert figures(window) == (1000, 1000, 0)


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 40), MARKS), max_size=60),
)
def test_a_time_window_equals_a_list(size, story):
    """Its sums are those of the calls whose slice is among the last ten, however long the gaps."""
    window, now, calls = TimeWindow(size), 0, []
    for gap, mark in story:
        now += gap
        window.advance(now)
        window.add(mark)
        calls.append((now, mark))
        this = math.floor(now / Fraction(size, SLICES))
        last = [m for at, m in calls if this - math.floor(at / Fraction(size, SLICES)) < SLICES]
        assert figures(window) == (
            len(last),
            sum(m & FAILED for m in last),
            sum(bool(m & SLOW) for m in last),
        )


def test_a_late_mark_goes_to_the_slice_of_its_call():
    """And is forgotten with it."""
    window = TimeWindow(SLICES)
    window.advance(0)
    waiter = window.add(SLOW)
    window.advance(5)
    window.add(0)
    window.add_mark(waiter, FAILED)
    assert figures(window) == (2, 1, 1)
    window.advance(10)
    assert figures(window) == (1, 0, 0)
    window.add_mark(waiter, FAILED)
    assert figures(window) == (1, 0, 0)


def test_a_call_with_a_late_mark_is_forgotten_with_its_slice():
    """Its mark, too, also after the slices have been reused."""
    window = TimeWindow(10)
    window.advance(25)
    waiter = window.add(0)
    window.add_mark(waiter, FAILED)
    window.advance(26)
    window.add_mark(waiter, SLOW)
    assert (window.calls, window.failures, window.slow) == (1, 1, 1)
    window.advance(35)
    assert (window.calls, window.failures, window.slow) == (0, 0, 0)


def test_a_mark_in_an_unused_time_window_changes_nothing():
    """Before the first ``advance`` there is no slice."""
    window = TimeWindow(1)
    window.add_mark(0, FAILED)
    assert figures(window) == (0, 0, 0)
    with pytest.raises(AssertionError, match="advance"):
        window.add(0)


def test_an_idle_hour_costs_what_an_idle_second_costs():
    """At most ten slices are wiped, whatever the gap."""
    window = TimeWindow(1)
    window.advance(0)
    window.add(FAILED)
    window.advance(1e9)
    assert figures(window) == (0, 0, 0)
    assert window.until == 1e9 + 0.1


@given(st.floats(0.001, 1e6), st.floats(-1e3, 1e9))
def test_until_is_later_than_now_by_at_most_one_slice(size, now):
    """So that the window is advanced once for each slice."""
    window = TimeWindow(size)
    window.advance(now)
    rounding = 1e-12 * max(1, abs(now), size)
    assert now - rounding <= window.until <= now + size / SLICES + rounding


@pytest.mark.parametrize(("add_many", "each"), [("add_unmarked", 0), ("add_failures", FAILED)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_calls_at_once_equal_calls_one_by_one(size, add_many, each):
    """Whatever the ring holds, from any place in it, once or twice round."""
    for marks in itertools.product([0, FAILED, SLOW, BOTH], repeat=3):
        for count in range(2 * size + 1):
            at_once, one_by_one = CountWindow(size), CountWindow(size)
            for mark in marks:
                at_once.add(mark)
                one_by_one.add(mark)
            getattr(at_once, add_many)(count)
            for _ in range(count):
                one_by_one.add(each)
            for mark in (FAILED, *[0] * size):
                assert figures(at_once) == figures(one_by_one)
                assert at_once.add(mark) == one_by_one.add(mark)


@pytest.mark.parametrize("make", [lambda: CountWindow(9), lambda: TimeWindow(10)])
@pytest.mark.parametrize(("mark", "expected"), [(FAILED, (3, 1, 0)), (SLOW, (3, 0, 1)), (BOTH, (3, 1, 1))])
def test_the_latest_call_can_get_a_late_mark(make, mark, expected):
    """With either mark, or with both."""
    window = make()
    window.advance(7)
    window.add_unmarked(2)
    window.add_mark(window.add(0), mark)
    assert figures(window) == expected


def test_failures_of_one_slice_are_forgotten_together():
    """With the slow calls that were in it."""
    window = TimeWindow(10)
    window.advance(0)
    window.add(SLOW)
    window.add_failures(2)
    window.add_failures(1)
    assert figures(window) == (4, 3, 1)
    window.advance(9.9)  # a step of ten slices at once would clear the window, whatever its slices hold
    assert figures(window) == (4, 3, 1)
    window.advance(10)
    assert figures(window) == (0, 0, 0)


def test_unmarked_calls_of_one_slice_are_forgotten_together():
    """However many times they were added."""
    window = TimeWindow(10)
    window.advance(0)
    window.add_unmarked(2)
    window.add_unmarked(3)
    assert figures(window) == (5, 0, 0)
    window.advance(9.9)
    assert figures(window) == (5, 0, 0)
    window.advance(10)
    assert figures(window) == (0, 0, 0)


def test_no_position_is_given_out_again_after_a_clear():
    """A mark of an earlier call would hit a later one."""
    window = CountWindow(2)
    old = [window.add(0) for _ in range(3)]
    window.clear()
    for _ in range(7):
        assert window.add(0) not in old
        for waiter in old:
            window.add_mark(waiter, BOTH)
        assert figures(window)[1:] == (0, 0)


def test_a_slice_before_the_clocks_zero_ends_there():
    """A clock may start below zero; slices are cut the same way on both sides."""
    window = TimeWindow(10)
    window.advance(-0.5)
    assert window.until == 0


def test_sums_do_not_drift():
    """W6: after 100,000 calls they are those of the calls in the window; without any they are 0."""
    dice = random.Random(6)
    counted, timed, now = CountWindow(997), TimeWindow(10), 0.0
    last, lately = deque(maxlen=997), deque()
    for _ in range(100_000):
        mark = dice.choice([0, 0, FAILED, SLOW, BOTH])
        now += dice.choice([0, 0.125, 0.375])
        timed.advance(now)
        timed.add(mark)
        counted.add(mark)
        last.append(mark)
        lately.append((int(now), mark))
        while int(now) - lately[0][0] >= SLICES:
            lately.popleft()
    for window, marks in ((counted, list(last)), (timed, [mark for _, mark in lately])):
        failures, slow = (sum(bool(mark & kind) for mark in marks) for kind in (FAILED, SLOW))
        assert figures(window) == (len(marks), failures, slow)
    counted.add_unmarked(997)
    timed.advance(now + SLICES)
    assert (figures(counted), figures(timed)) == ((997, 0, 0), (0, 0, 0))
    assert {type(figure) for figure in figures(counted) + figures(timed)} == {int}


def test_a_window_of_a_million_calls_takes_a_megabyte():
    """W8: a byte for each call from the start, and nothing more for each one that is made."""
    tracemalloc.start()
    try:
        window = CountWindow(10**6)
        made, _ = tracemalloc.get_traced_memory()
        for _ in range(10_000):
            window.add(BOTH)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made < 1.01 * 10**6
    assert used - made < 100_000  # ten bytes a call: an object takes more, other threads of a run far less


def test_a_large_window_costs_each_call_what_a_small_one_does():
    """W8: neither adding a call nor reading loops over the window."""

    def cost(size):
        window = CountWindow(size)
        window.add_unmarked(size)
        began = time.thread_time()
        for _ in range(1000):
            window.add_mark(window.add(SLOW), FAILED)
            window.advance(0)
            figures(window)
        return time.thread_time() - began

    small, large = (min(cost(size) for _ in range(5)) for size in (10, 10**6))
    assert large < 10 * small


def test_failures_that_were_added_together_are_forgotten_with_their_slice():
    """Whatever its number: here the sixth of ten."""
    window = TimeWindow(10)
    window.advance(5.0)
    window.add_failures(2)
    window.add(FAILED)
    window.advance(14.9)
    assert (window.calls, window.failures) == (3, 3)
    window.advance(15.0)
    assert (window.calls, window.failures) == (0, 0)
