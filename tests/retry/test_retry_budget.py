"""`RetryBudget`: retries never exceed their share, whatever call sites share it."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import ConfigurationError, RetryBudget
from guardrails.testing.clock import FakeClock


def call(budget, times):
    for _ in range(times):
        budget.deposit()


def retries_allowed(budget, asked=1000):
    """Withdraws until it is refused; returns the number of successes."""
    return next((done for done in range(asked) if not budget.try_withdraw()), asked)


def test_a_share_of_the_calls_may_be_retried(clock):
    """Ten percent of 200 calls, and not one more."""
    budget = RetryBudget(0.1, minimum_per_second=0, clock=clock)
    call(budget, 200)
    assert retries_allowed(budget) == 20
    assert not budget.try_withdraw()


@pytest.mark.parametrize("calls", [10, 30, 70, 290, 1000])
@pytest.mark.parametrize("percent", [10, 29, 70, 100])
def test_shares_are_exact(clock, calls, percent):
    """A ratio that no float holds exactly still allows the right whole number."""
    budget = RetryBudget(percent / 100, minimum_per_second=0, clock=clock)
    call(budget, calls)
    assert retries_allowed(budget, 2000) == calls * percent // 100


def test_a_quiet_service_may_retry(clock):
    """The free retries are there before the first call, and come back with time."""
    budget = RetryBudget(0.1, minimum_per_second=2, clock=clock)
    assert retries_allowed(budget) == 20
    clock.advance(9)
    assert not budget.try_withdraw()
    clock.advance(1)
    assert retries_allowed(budget) == 20


def test_calls_expire_after_ten_seconds(clock):
    """So that a quiet hour saves no retries for a storm."""
    budget = RetryBudget(0.5, minimum_per_second=0, clock=clock)
    call(budget, 100)
    clock.advance(10)
    assert not budget.try_withdraw()


def test_a_clock_that_went_back_means_no_time_passed():
    """Nothing is forgotten and nothing is given twice."""
    clock = FakeClock(50)
    budget = RetryBudget(1, minimum_per_second=0, clock=clock)
    call(budget, 3)
    clock.set(20)
    assert retries_allowed(budget) == 3


class NaiveBudget:
    """The same rule, from a list of everything that ever happened."""

    def __init__(self, percent, free):
        self.percent, self.free = percent, free
        self.calls, self.retries = [], []

    def lately(self, moments, now):
        return sum(1 for at in moments if now // 1000 - at // 1000 < 10)

    def withdraw(self, now):
        allowed = (self.percent * self.lately(self.calls, now) + 100 * 10 * self.free) // 100
        if self.lately(self.retries, now) + 1 > allowed:
            return False
        self.retries.append(now)
        return True


@given(
    percent=st.integers(0, 100),
    free=st.integers(0, 3),
    moves=st.lists(
        st.one_of(st.just("retry"), st.integers(1, 40), st.tuples(st.integers(1, 15_000))), max_size=80
    ),
)
def test_budget_equals_the_naive_one_and_is_never_exceeded(percent, free, moves):
    """Over any time the retries stay below the share and the free ones."""
    now, clock = 0, FakeClock()
    budget = RetryBudget(percent / 100, minimum_per_second=free, clock=clock)
    naive = NaiveBudget(percent, free)
    for move in moves:
        if isinstance(move, tuple):
            now += move[0]
            clock.set(now / 1000)
        elif move == "retry":
            assert budget.try_withdraw() == naive.withdraw(now)
        else:
            call(budget, move)
            naive.calls += [now] * move
        # One window's free retries may be used up front, and one slice of a second is still counted.
        most = percent / 100 * len(naive.calls) + free * (now / 1000 + 11)
        assert len(naive.retries) <= most + 1e-6
    figures = budget.snapshot()
    assert figures.calls == naive.lately(naive.calls, now)
    assert figures.retries == naive.lately(naive.retries, now)


def test_threads_share_one_budget(clock):
    """Eight threads that ask at once get exactly what there is."""
    budget = RetryBudget(0.25, minimum_per_second=0, clock=clock)
    start = threading.Barrier(8)
    allowed = []

    def work():
        start.wait()
        call(budget, 500)
        start.wait()
        allowed.append(retries_allowed(budget, 2000))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 8 * 500 // 4
    assert budget.snapshot().refused == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_process_finds_the_budget_unlocked(clock):
    """A fork in the middle of another thread's step leaves no lock behind in the child."""
    budget = RetryBudget(1, clock=clock)
    inside, done = threading.Event(), threading.Event()

    def hold():
        with budget._lock:
            inside.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if budget.try_withdraw() else 1)
    done.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_snapshot_and_repr_tell_the_same(clock):
    """Both change nothing."""
    budget = RetryBudget(0.1, minimum_per_second=0, clock=clock)
    call(budget, 25)
    assert budget.try_withdraw()
    for _ in range(2):
        figures = budget.snapshot()
        assert (figures.calls, figures.retries, figures.available, figures.refused) == (25, 1, 1, 0)
    assert repr(budget) == "<RetryBudget 1 retries of 25 calls, 1 available>"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1, True, "5", None, 10**400])
@pytest.mark.parametrize("field", ["ratio", "minimum_per_second"])
def test_wrong_settings_are_refused_by_name(field, wrong):
    """With the value and what is allowed."""
    with pytest.raises(ConfigurationError, match=f"RetryBudget: {field} must be a number in"):
        RetryBudget(**{field: wrong})


def test_all_faults_are_told_at_once():
    """A percentage is not a share, and a clock is called."""
    with pytest.raises(ConfigurationError, match=r"ratio must .* got 20; .*clock must be callable"):
        RetryBudget(20, clock=3)
