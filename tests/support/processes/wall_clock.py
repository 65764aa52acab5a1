"""A process whose wall clock leaps at every reading, by an hour, to 1970, to 2100."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import time

EPOCH, FAR = 0.0, 4_102_444_800.0
_right = time.time
_leaps = itertools.cycle([lambda: _right() - 3600, lambda: EPOCH, lambda: _right() + 3600, lambda: FAR])


def leaping():
    """Seconds since 1970, as a clock tells them that somebody sets all the time."""
    return next(_leaps)()


class LeapingDatetime(dt.datetime):
    """Whose present is that of the leaping clock."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(leaping(), tz)


time.time, time.time_ns = leaping, lambda: int(leaping() * 1e9)
dt.datetime = LeapingDatetime

# Only now, so that a default argument or a name imported from a module is the leaping clock's, too.
import asyncio  # noqa: E402

from guardrails import (  # noqa: E402
    BreakerPolicy,
    CircuitBreaker,
    CircuitOpenError,
    Guard,
    RetryBudget,
    deadline,
    remaining,
)

LONG = 600
POLICY = {"minimum_number_of_calls": 3, "sliding_window_size": LONG, "open_jitter": 0}


def boom():
    raise LookupError


def fail(call, times):
    for _ in range(times):
        with contextlib.suppress(LookupError):
            call(boom)


def retry_after(call):
    """What a refusal says; None for a call that was let in."""
    try:
        call(int)
    except CircuitOpenError as refusal:
        return refusal.retry_after
    return None


def stays_closed():
    """Nothing is slow, late or forgotten."""
    guard = Guard("db", max_concurrent_calls=2, timeout=LONG, breaker=BreakerPolicy(**POLICY))
    for _ in range(40):
        guard.run(int)
        asyncio.run(guard.run_async(asyncio.sleep, 0))
    now = guard.snapshot()
    assert (now.state, now.calls, now.slow_calls, now.failed) == ("closed", 80, 0, 0)


def stays_open():
    """For as long as it should, and says for how long."""
    guard = Guard(
        "db", max_concurrent_calls=2, breaker=BreakerPolicy(**POLICY, wait_duration_in_open_state=LONG)
    )
    breaker = CircuitBreaker(fail_max=3, reset_timeout=LONG, throw_new_error_on_trip=False)
    for call in (guard.run, breaker.call):
        fail(call, 3)
        assert all(LONG - 100 < retry_after(call) <= LONG for _ in range(40))


def opens_for_no_longer():
    """When its short wait is over, a probe is let in."""
    guard = Guard(
        "db", max_concurrent_calls=2, breaker=BreakerPolicy(**POLICY, wait_duration_in_open_state=0.05)
    )
    breaker = CircuitBreaker(fail_max=3, reset_timeout=0.05, throw_new_error_on_trip=False)
    for call in (guard.run, breaker.call):
        fail(call, 3)
        give_up = time.monotonic() + 30
        while retry_after(call) is not None:
            assert time.monotonic() < give_up
            time.sleep(0.01)


def keeps_deadlines():
    """Time passes by seconds."""
    with deadline(LONG):
        assert all(LONG - 100 < remaining() <= LONG for _ in range(40))


def keeps_a_budget():
    """A tenth of the calls of the last seconds, which are still the last ones, whichever leap comes first."""
    for _ in range(4):
        leaping()
        budget = RetryBudget(0.1, minimum_per_second=0)
        for _ in range(40):
            budget.deposit()
        assert [budget.try_withdraw() for _ in range(5)] == [True] * 4 + [False]


if __name__ == "__main__":
    stays_closed()
    stays_open()
    opens_for_no_longer()
    keeps_deadlines()
    keeps_a_budget()
    print("fine")
