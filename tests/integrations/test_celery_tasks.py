"""`GuardedTask` alone: its countdowns, its deadlines, and which errors it leaves as they are."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from guardrails import (
    CallTimeoutError,
    CircuitOpenError,
    DeadlineSpentError,
    Guard,
    RejectedError,
    deadline,
    remaining,
)

celery = pytest.importorskip("celery")

app = celery.Celery("tests", task_cls="guardrails.integrations.celery:GuardedTask", set_as_current=False)
NUMBERS = itertools.count()


@contextlib.contextmanager
def received(task, **request):
    """The task as a worker runs it: with a request of its own."""
    task.push_request(called_directly=False, is_eager=True, args=(), kwargs={}, id="1", **request)
    try:
        yield
    finally:
        task.pop_request()


def raising(error, **options):
    """A task that raises an error."""

    @app.task(name=f"raising {next(NUMBERS)}", shared=False, **options)
    def task():
        raise error

    return task


@pytest.mark.parametrize(("retries", "longest"), [(0, 10.0), (1, 20.0), (3, 80.0), (9, 600.0), (5000, 600.0)])
def test_a_refusal_is_retried_after_its_retry_after_and_a_random_time(retries, longest):
    task = raising(CircuitOpenError("db", "circuit_open", 2.0), max_retries=None)
    seen = []
    for _ in range(200):
        with received(task, retries=retries), pytest.raises(celery.exceptions.Retry) as again:
            task()
        assert isinstance(again.value.exc, CircuitOpenError)
        seen.append(again.value.when)
    assert 2.0 + 0.1 * longest <= min(seen)
    assert max(seen) <= 2.0 + longest
    assert max(seen) - min(seen) > longest / 2


def test_a_refusal_without_retry_after_is_retried():
    task = raising(RejectedError("db", "bulkhead_full"), default_retry_delay=1)
    with received(task, retries=0), pytest.raises(celery.exceptions.Retry) as again:
        task()
    assert 0.1 <= again.value.when <= 1.0


def test_the_refusal_is_raised_after_the_last_retry():
    refused = RejectedError("db", "bulkhead_full")
    task = raising(refused, max_retries=2)
    with received(task, retries=2), pytest.raises(RejectedError) as raised:
        task()
    assert raised.value is refused


@pytest.mark.parametrize(
    "error", [CallTimeoutError("db", 1.0), DeadlineSpentError("db", "deadline_spent"), ValueError("wrong")]
)
def test_other_errors_are_raised_as_they_are(error):
    task = raising(error)
    with received(task, retries=0), pytest.raises(type(error)) as raised:
        task()
    assert raised.value is error


def test_a_task_that_is_called_as_a_function_raises_its_refusal():
    refused = RejectedError("db", "bulkhead_full")
    with pytest.raises(RejectedError) as raised:
        raising(refused)()
    assert raised.value is refused


@pytest.mark.parametrize(
    ("options", "timelimit", "expected"),
    [
        ({"soft_time_limit": 5}, None, 4.5),
        ({"soft_time_limit": 60}, None, 59.0),
        ({"soft_time_limit": 5, "time_limit": 7}, None, 4.5),
        ({"time_limit": 7}, None, 6.3),
        ({"soft_time_limit": 5}, [20, 10], 9.0),
        ({"time_limit": 7}, [20, None], 19.0),
        ({}, None, None),
    ],
)
def test_a_time_limit_is_a_deadline(options, timelimit, expected):
    """The soft one comes first, that of the request before the task's."""

    @app.task(name=f"left {options} {timelimit}", shared=False, **options)
    def task():
        return remaining()

    with received(task, retries=0, timelimit=timelimit):
        left = task()
    assert left is None if expected is None else expected - 2 < left <= expected
    assert remaining() is None
    assert task() is None, "a function call has no limit of Celery's"


def test_an_own_deadline_inside_a_task_is_kept():
    guard = Guard("db", max_concurrent_calls=1)

    @app.task(name="own deadline", shared=False, soft_time_limit=60)
    def task():
        with deadline(0), guard.call():
            pytest.fail("there is no time left")

    with received(task, retries=0), pytest.raises(DeadlineSpentError):
        task()
