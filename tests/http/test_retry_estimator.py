"""When to come back to a full bulkhead: by the pace at which its slots came free."""

from __future__ import annotations

import pytest

from guardrails import BulkheadFullError, Guard
from guardrails._http.retry_estimator import MAXIMUM_AGE, MINIMUM_SPAN, RetryEstimator
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.asgi_client import ask, fine, raising


def test_nothing_is_known_at_first():
    """One look says nothing of a pace; nor do two that are close together."""
    estimator = RetryEstimator()
    assert estimator.seconds(0.0, 100, 5) is None
    assert estimator.seconds(MINIMUM_SPAN / 2, 200, 5) is None


@pytest.mark.parametrize(("waiting", "seconds"), [(0, 0.1), (19, 2.0), (99, 10.0)])
def test_the_queue_divided_by_the_pace(waiting, seconds):
    """Ten slots a second came free, and the newcomer is behind all who wait."""
    estimator = RetryEstimator()
    estimator.seconds(0.0, 0, 0)
    assert estimator.seconds(2.0, 20, waiting) == pytest.approx(seconds)
    assert estimator.seconds(2.5, 21, waiting) == pytest.approx(seconds)


def test_what_stands_still_may_stand_still_as_long_again():
    """No slot for seven seconds: nobody need come back in one."""
    estimator = RetryEstimator()
    estimator.seconds(0.0, 0, 0)
    estimator.seconds(1.0, 50, 0)
    assert estimator.seconds(8.0, 50, 3) == 7.0
    assert estimator.seconds(5_000.0, 50, 3) == 4_999.0


def test_an_old_pace_is_forgotten():
    """An hour of little traffic is not how fast slots come free when they are wanted."""
    estimator = RetryEstimator()
    estimator.seconds(0.0, 0, 0)
    estimator.seconds(1.0, 10, 0)
    assert estimator.seconds(1.0 + MAXIMUM_AGE + 1, 11, 0) is None
    assert estimator.seconds(2.0 + MAXIMUM_AGE + 2, 111, 49) == pytest.approx(1.0, rel=0.2)


def refused(app):
    return ask(app).headers["retry-after"]


@pytest.mark.parametrize("where", ["edge", "inside"])
def test_a_refused_client_is_told_how_long_the_queue_will_take(clock, where):
    """Wherever it was refused."""
    db = Guard("db", max_concurrent_calls=1, max_wait_duration=0, timeout=None, clock=clock)

    async def inside(_scope, _receive, _send):
        db.run(len, "x")

    app = (
        GuardrailsMiddleware(fine, requires=[db], random=lambda: 0.0)
        if where == "edge"
        else GuardrailsMiddleware(inside, guards=[db], random=lambda: 0.0)
    )
    with db.call():
        assert refused(app) == "1"
        clock.advance(7)
        assert refused(app) == "7"


def test_an_estimate_of_the_callers_own_stands():
    """An error that says when is believed."""
    db = Guard("db", max_concurrent_calls=1)
    error = BulkheadFullError("db", "queue_timeout", 7.2)
    assert refused(GuardrailsMiddleware(raising(error), guards=[db], random=lambda: 0.0)) == "8"
