"""Retries: each attempt is a guarded call, no pause passes the deadline, some errors are never retried."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import inspect
import math
import threading
import time
import weakref

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from guardrails import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    CommitUnknownError,
    ConfigurationError,
    DeadlineSpentError,
    Guard,
    RetryBudget,
    ShedError,
    deadline,
    guarded,
    remaining,
    retrying,
)
from guardrails._retry.loop import retried
from guardrails.testing.clock import FakeClock
from support.callables import FORMS, result_of
from support.calls import (
    Boom,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    raised_from,
    raised_while_handling,
    tripping,
)


class Script:
    """A function that plays its errors one call after the other, then returns."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "fine"


def at_once(policy):
    """The same retries without their pauses."""
    return policy.copy(sleep=lambda seconds: None)


def finish(value):
    """Runs a coroutine that never has to wait, in no event loop, so that any error can come out of it."""
    if not asyncio.iscoroutine(value):
        return value
    try:
        value.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")


def test_each_attempt_passes_the_guard(run, make_guard):
    """Two failures and a success: three admissions, all of them evidence."""
    guard = make_guard()
    script = Script(Boom(), Boom())
    wrapped = guarded(guard, retry=at_once(retrying()))(run.decorated(script))
    assert run.result(wrapped()) == "fine"
    figures = guard.snapshot()
    assert (script.calls, figures.admitted, figures.failed, figures.succeeded) == (3, 3, 2, 1)


def test_the_last_error_itself_comes_out(run, make_guard):
    """When the attempts are used up, nobody has to unwrap a RetryError."""
    errors = [Boom(1), Boom(2), Boom(3), Boom(4)]
    wrapped = guarded(make_guard(), retry=at_once(retrying(attempts=3)))(run.decorated(Script(*errors)))
    with pytest.raises(Boom) as raised:
        run.result(wrapped())
    assert raised.value is errors[2]


def test_a_guard_alone_does_not_retry(run, make_guard):
    """It calls once."""
    script = Script(Boom())
    with pytest.raises(Boom):
        run.result(guarded(make_guard())(run.decorated(script))())
    assert script.calls == 1


NEVER = {
    "open circuit": CircuitOpenError("db", "circuit_open", 0.01),
    "full bulkhead": BulkheadFullError("db", "bulkhead_full"),
    "spent deadline": DeadlineSpentError("db", "deadline_spent"),
    "shed": ShedError("db", "shed"),
    "cancellation": asyncio.CancelledError(),
    "Ctrl-C": KeyboardInterrupt(),
    "exit": SystemExit(1),
    "closed generator": GeneratorExit(),
    "commit of unknown effect": CommitUnknownError("db", 1.0),
    "wrong setting": ConfigurationError("timeout must be ..."),
    "an application's word for a refusal": raised_from(Boom(), CircuitOpenError("db", "circuit_open")),
    "an application's word for an unknown commit": raised_from(Boom(), CommitUnknownError("db", 1.0)),
    "clean-up that failed after the commit": raised_while_handling(Boom(), CommitUnknownError("db", 1.0)),
    "a group with a cancellation": BaseExceptionGroup("", [Boom(), asyncio.CancelledError()]),
    "a group with a refusal": ExceptionGroup("", [Boom(), BulkheadFullError("db", "queue_timeout")]),
    "a cause that is a group": raised_from(Boom(), ExceptionGroup("", [ShedError("db", "shed")])),
}

POLICIES = {
    "ours": retrying(on=lambda error: True),
    "retry_always": tenacity.Retrying(retry=tenacity.retry_always, reraise=True),
    "AsyncRetrying": tenacity.AsyncRetrying(retry=tenacity.retry_always, reraise=True),
    "retry_if_not_exception_type": tenacity.Retrying(retry=tenacity.retry_if_not_exception_type(LookupError)),
    "retry_if_exception": tenacity.Retrying(retry=tenacity.retry_if_exception(lambda error: True)),
    "retry_unless": tenacity.Retrying(retry=tenacity.retry_unless_exception_type(LookupError)),
    "retry_any": tenacity.Retrying(retry=tenacity.retry_any(tenacity.retry_always, tenacity.retry_never)),
}


@pytest.mark.sampled
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("error", NEVER)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_some_errors_are_never_retried(error, policy, is_async):
    """Whatever the tenacity object says; the error comes out unchanged."""
    error, policy = NEVER[error], POLICIES[policy]
    script = Script(error)

    async def ask():
        return script()

    with pytest.raises(type(error)) as raised:
        finish(retried(ask if is_async else script, at_once(policy))())
    assert raised.value is error
    assert script.calls == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_other_errors_are_retried(make_guard, policy):
    """By the same objects: a timeout, a failure, a failure behind a cancellation of another task."""
    for error in (
        Boom(),
        CallTimeoutError("db", 0.1),
        raised_from(TimeoutError(), asyncio.CancelledError()),
        raised_while_handling(Boom(), CircuitOpenError("cache", "circuit_open")),
        ExceptionGroup("", [Boom(), OSError()]),
    ):
        script = Script(error)
        with_two = at_once(POLICIES[policy]).copy(stop=tenacity.stop_after_attempt(2))
        if policy in {"retry_always", "AsyncRetrying", "retry_unless", "retry_any"}:
            # These retry results as well, so that two attempts end in "no success".
            with pytest.raises(tenacity.RetryError):
                guarded(make_guard(), retry=with_two)(script)()
        else:
            assert guarded(make_guard(), retry=with_two)(script)() == "fine"
        assert script.calls == 2


def test_errors_in_a_circle_end():
    """A chain of causes can be one."""
    error = Boom()
    error.__cause__ = error
    script = Script(error)
    assert at_once(retrying())(script) == "fine"
    assert script.calls == 2


def test_reconciling_after_an_unknown_commit_may_retry(run):
    """The error that is being handled when the call is made is not the call's own."""
    script = Script(Boom())
    wrapped = at_once(retrying()).wraps(run.decorated(script))
    try:
        raise CommitUnknownError("db", 1.0)
    except CommitUnknownError:
        assert finish(wrapped()) == "fine"
    assert script.calls == 2


def test_an_unknown_commit_is_seen_while_another_error_is_handled():
    """The clean-up's error hides it, and the caller was busy with an error of its own."""

    def commit():
        try:
            raise CommitUnknownError("db", 1.0)
        except CommitUnknownError:
            raise Boom  # noqa: B904 - as clean-ups do

    script = Script()
    try:
        raise LookupError
    except LookupError:
        with pytest.raises(Boom):
            at_once(retrying()).wraps(lambda: script() and commit())()
    assert script.calls == 1


def test_a_refusal_between_attempts_ends_them(run, make_guard):
    """The first failure opens the circuit; the second attempt is refused, and there is no third."""
    guard = make_guard(breaker=tripping())
    script = Script(Boom(), Boom(), Boom())
    with pytest.raises(CircuitOpenError):
        run.result(guarded(guard, retry=at_once(retrying()))(run.decorated(script))())
    assert script.calls == 1
    assert guard.snapshot().rejected == {"circuit_open": 1}


def test_a_timeout_is_retried_and_each_attempt_has_its_own():
    """Asking for retries says that the call may run twice; its effect being unknown is then no reason."""
    guard = Guard("db", max_concurrent_calls=1, timeout=0.05)
    attempts = []

    @guarded(guard, retry=at_once(retrying()))
    async def hang_once():
        attempts.append(remaining())
        if len(attempts) == 1:
            await asyncio.sleep(60)
        return "fine"

    assert asyncio.run(hang_once()) == "fine"
    assert len(attempts) == 2
    assert attempts[1] > 0
    assert guard.snapshot().failed == 1


# --- pauses ----------------------------------------------------------------------------------------


def test_a_pause_holds_no_slot_and_no_deadline_of_the_guard(run, make_guard, clock):
    """The only slot is free for others while the call waits to try again."""
    guard = make_guard(max_concurrent_calls=1, timeout=3.0)
    seen = []

    def spy(seconds):
        seen.append((guard.snapshot().in_use, remaining()))
        assert guard.run(lambda: "somebody else") == "somebody else"

    wrapped = guarded(guard, retry=retrying().copy(sleep=spy))(run.decorated(Script(Boom(), Boom())))
    assert run.result(wrapped()) == "fine"
    assert seen == [(0, None), (0, None)]


def test_pauses_grow_with_full_jitter(run, make_guard):
    """Between nothing and 0.1 s, then twice as much each time, at most 2 s."""
    for share, expected in ((0.0, [0.0] * 7), (0.5, [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])):
        slept = []
        policy = retrying(attempts=8, random=lambda share=share: share).copy(sleep=slept.append)
        script = Script(*[Boom() for _ in range(7)])
        assert run.result(guarded(make_guard(), retry=policy)(run.decorated(script))()) == "fine"
        assert slept == pytest.approx(expected)


def test_pauses_stay_finite_after_any_number_of_attempts():
    """2 ** 5000 does not."""
    slept = []
    policy = retrying(attempts=5000, random=lambda: 0.5).copy(sleep=slept.append)
    with pytest.raises(Boom):
        policy(Script(*[Boom() for _ in range(5000)]))
    assert len(slept) == 4999
    assert max(slept) == 1.0


class Later(Exception):
    """A dependency that says when to come back."""

    def __init__(self, retry_after):
        self.retry_after = retry_after


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        (7, 7.0),
        (0.5, 0.5),
        (0.01, 0.25),
        (-1, 0.25),
        (math.nan, 0.25),
        (math.inf, 0.25),
        ("3", 0.25),
        (None, 0.25),
        (True, 0.25),
    ],
)
def test_a_pause_lasts_at_least_the_errors_retry_after(run, make_guard, retry_after, expected):
    """A ``retry_after`` that is no finite number is ignored."""
    slept = []
    policy = retrying(wait=tenacity.wait_fixed(0.25)).copy(sleep=slept.append)
    wrapped = guarded(make_guard(), retry=policy)(run.decorated(Script(Later(retry_after))))
    assert run.result(wrapped()) == "fine"
    assert slept == [expected]


def test_a_retry_after_of_more_than_a_minute_ends_the_attempts(run, make_guard):
    """With the error of the dependency."""
    script = Script(Later(86400))
    wrapped = guarded(make_guard(), retry=retrying())(run.decorated(script))
    with pytest.raises(Later):
        run.result(wrapped())
    assert script.calls == 1


@pytest.mark.parametrize("wait", [math.nan, math.inf, "5", None, 10**400, True])
def test_a_pause_that_is_no_number_is_not_begun(run, make_guard, wait):
    """It reaches no sleep; the error comes out instead."""
    script = Script(Boom())
    policy = retrying(wait=lambda state: wait)
    with pytest.raises(Boom):
        run.result(guarded(make_guard(), retry=policy)(run.decorated(script))())
    assert script.calls == 1


def test_a_negative_pause_is_none(run, make_guard):
    """As a wait strategy with a mistake in its arithmetic gives it."""
    slept = []
    policy = retrying(wait=lambda state: -1.0).copy(sleep=slept.append)
    assert run.result(guarded(make_guard(), retry=policy)(run.decorated(Script(Boom())))()) == "fine"
    assert slept == [0.0]


@pytest.mark.parametrize(("pause", "slept"), [(0.4, 2), (0.5, 1), (1.0, 0), (0.3, 3)])
def test_a_pause_that_would_leave_no_time_is_not_begun(run, make_guard, clock, pause, slept):
    """Of 1 s, two pauses of 0.4 s fit, and the last error comes out; one that ends with it does not fit."""
    script = Script(*[Boom() for _ in range(9)])
    policy = retrying(attempts=10, wait=tenacity.wait_fixed(pause)).copy(sleep=clock.advance)
    wrapped = guarded(make_guard(), retry=policy)(run.decorated(script))

    def hurried():
        with deadline(1.0, clock=clock):
            return wrapped()

    async def hurried_async():
        with deadline(1.0, clock=clock):
            return await wrapped()

    with pytest.raises(Boom):
        run.result(hurried_async() if run.is_async else hurried())
    assert script.calls == slept + 1
    assert clock() == pytest.approx(pause * slept)


@given(
    budget=st.floats(0.001, 20),
    plan=st.lists(st.floats(0, 10), min_size=1, max_size=12),
    asked=st.lists(st.none() | st.floats(-1, 100), min_size=12, max_size=12),
    work=st.floats(0, 3),
)
def test_no_pause_ever_ends_after_the_deadline(budget, plan, asked, work):
    """However long attempts take and whatever strategies and dependencies ask for."""
    clock = FakeClock()
    errors = iter(asked)
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        clock.advance(seconds)
        assert clock() < budget

    def attempt():
        clock.advance(work)
        raise Later(next(errors))

    policy = tenacity.Retrying(
        wait=lambda state: plan[state.attempt_number % len(plan)],
        stop=tenacity.stop_after_attempt(12),
        sleep=sleep,
    )
    guard = Guard("db", max_concurrent_calls=1, timeout=None, clock=clock, breaker=None)
    with deadline(budget, clock=clock), pytest.raises((Later, tenacity.RetryError, DeadlineSpentError)):
        guarded(guard, retry=policy)(attempt)()
    assert sum(pauses) < budget


# --- cancellation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["ours", "retry_always", "AsyncRetrying"])
def test_a_pause_ends_at_once_when_it_is_cancelled(make_guard, policy):
    """A cancelled task does not wait for a minute."""
    script = Script(*[Boom() for _ in range(9)])
    asleep = asyncio.Event()

    async def sleep(seconds):
        asleep.set()
        await asyncio.sleep(60)

    async def ask():
        return script()

    async def main():
        task = asyncio.create_task(guarded(make_guard(), retry=POLICIES[policy].copy(sleep=sleep))(ask)())
        await asleep.wait()
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start < 10

    asyncio.run(main())
    assert script.calls == 1


def test_the_pause_of_a_sync_object_does_not_stop_the_loop(make_guard):
    """A tenacity Retrying sleeps with time.sleep; on a coroutine function it must not."""
    policy = tenacity.Retrying(wait=tenacity.wait_fixed(0.2), reraise=True)
    script = Script(Boom())

    async def ask():
        return script()

    async def main():
        retried = asyncio.create_task(guarded(make_guard(), retry=policy)(ask)())
        turns = 0
        while not retried.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert await retried == "fine"
        return turns

    assert asyncio.run(main()) > 5


@pytest.mark.parametrize("policy", ["ours", "retry_always", "AsyncRetrying", "retry_if_exception"])
def test_cancelled_at_every_await(make_guard, policy):
    """Wherever the cancellation arrives, it comes out, nothing is tried again, and nothing is held."""
    guard = make_guard(max_concurrent_calls=1)

    class Ran(list):
        """What ran after the cancellation was delivered."""

    def scenario(log):
        async def sleep(seconds):
            await asyncio.sleep(0)
            log.append("slept")

        @guarded(guard, retry=POLICIES[policy].copy(sleep=sleep))
        async def ask():
            log.append("began")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            log.append("failed")
            raise Boom

        return ask()

    async def cancel_after(steps):
        log = Ran()
        task = asyncio.create_task(scenario(log))
        for _ in range(steps):
            await asyncio.sleep(0)
        so_far = len(log)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, Boom)) as raised:
            await task
        assert len(log) == so_far, "it ran on"
        assert guard.snapshot().in_use == 0
        return raised.type

    async def main():
        return [await cancel_after(steps) for steps in range(9)]

    assert asyncio.run(main()) == [asyncio.CancelledError] * 9


# --- budgets ---------------------------------------------------------------------------------------


def test_call_sites_share_a_budget(run, make_guard, clock):
    """100 calls that all fail make 10 retries, not 200."""
    budget = RetryBudget(0.1, minimum_per_second=0, clock=clock)
    attempts = []

    def failing():
        attempts.append(1)
        raise Boom

    sites = [
        guarded(make_guard(name, breaker=None), retry=at_once(retrying(budget=budget)))(
            run.decorated(failing)
        )
        for name in ("orders", "users")
    ]
    for call in range(100):
        with pytest.raises(Boom):
            run.result(sites[call % 2]())
    assert len(attempts) == 110
    assert budget.snapshot().retries == 10


def test_layers_do_not_multiply(make_guard, clock):
    """Three layers of three attempts would be 27 calls for one; a budget keeps the fleet at 20 % more."""
    budget = RetryBudget(0.1, minimum_per_second=0, clock=clock)
    attempts = []

    def backend():
        attempts.append(1)
        raise Boom

    layered = backend
    for _ in range(3):
        layered = at_once(retrying(budget=budget)).wraps(layered)
    for _ in range(100):
        with pytest.raises(Boom):
            layered()
    # Each layer's first attempts are calls to the budget; none of the layers adds more than the share.
    figures = budget.snapshot()
    assert figures.retries <= 0.1 * figures.calls
    assert len(attempts) <= 100 * 1.1**3


def test_a_pause_that_is_not_begun_costs_no_budget(make_guard, clock):
    """The budget is read last."""
    budget = RetryBudget(1, minimum_per_second=0, clock=clock)
    policy = retrying(budget=budget, wait=tenacity.wait_fixed(2))
    with deadline(1, clock=clock), pytest.raises(Boom):
        guarded(make_guard(), retry=policy)(Script(Boom()))()
    figures = budget.snapshot()
    assert (figures.calls, figures.retries, figures.refused) == (1, 0, 0)


# --- what is retried -------------------------------------------------------------------------------


class UniqueViolation(IntegrityError):
    """As psycopg derives it."""


@pytest.mark.parametrize(
    ("on", "retried"),
    [
        (None, {Boom, OSError, OperationalError, KeyError, ValueError}),
        (OperationalError, {OperationalError}),
        ((OSError, KeyError), {OSError, KeyError}),
        (TypeError, {TypeError}),
        (lambda error: isinstance(error, LookupError), {KeyError}),
        (lambda error: error.no_such_attribute, set()),
    ],
    ids=["default", "class", "classes", "a bug, by name", "function", "broken function"],
)
def test_what_is_retried(make_guard, on, retried, caplog):
    """By default not what a retry cannot change."""
    kinds = (
        Boom,
        OSError,
        OperationalError,
        KeyError,
        ValueError,
        UniqueViolation,
        ProgrammingError,
        TypeError,
        AttributeError,
        NameError,
        AssertionError,
    )
    seen = set()
    for kind in kinds:
        script = Script(kind())
        wrapped = guarded(make_guard(), retry=at_once(retrying(on=on)))(script)
        try:
            wrapped()
        except kind:
            assert script.calls == 1
        else:
            seen.add(kind)
    assert seen == retried


def test_results_can_be_retried_too(run, make_guard):
    """With a tenacity object that asks about them."""
    results = iter([503, 503, 200])
    policy = tenacity.Retrying(retry=tenacity.retry_if_result(lambda status: status == 503))
    assert run.result(guarded(make_guard(), retry=policy)(run.decorated(lambda: next(results)))()) == 200


def test_try_again_retries_unless_a_refusal_caused_it(run, make_guard):
    """tenacity's own way to ask for another attempt passes its predicates, not our rules."""
    policy = at_once(tenacity.Retrying(reraise=True, stop=tenacity.stop_after_attempt(3)))
    for error, calls in ((Boom(), 3), (BulkheadFullError("db", "bulkhead_full"), 1)):
        asked = []

        def again(error=error, asked=asked):
            asked.append(1)
            try:
                raise error
            except Exception:
                raise tenacity.TryAgain from None

        with pytest.raises(type(error)):
            run.result(guarded(make_guard(), retry=policy)(run.decorated(again))())
        assert len(asked) == calls


# --- the user's own objects ------------------------------------------------------------------------


def test_a_tenacity_object_decides_which_error_comes_out(run, make_guard):
    """tenacity's default is RetryError, and a callback may answer."""
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))
    with pytest.raises(tenacity.RetryError):
        run.result(guarded(make_guard(), retry=policy)(run.decorated(Script(Boom(), Boom())))())
    answering = policy.copy(retry_error_callback=lambda state: f"gave up after {state.attempt_number}")
    wrapped = guarded(make_guard(), retry=answering)(run.decorated(Script(Boom(), Boom())))
    assert run.result(wrapped()) == "gave up after 2"


def test_a_tenacity_object_is_not_changed(run, make_guard):
    """Each call reads its settings."""
    for policy in (tenacity.Retrying(reraise=True), tenacity.AsyncRetrying(reraise=True)):
        before = dict(vars(policy))
        script = Script(Boom(), Boom())
        wrapped = guarded(make_guard(), retry=policy)(run.decorated(script))
        assert run.result(wrapped()) == "fine"
        assert vars(policy) == before
        policy.stop = tenacity.stop_after_attempt(1)
        script.errors = [Boom()]
        with pytest.raises(Boom):
            run.result(wrapped())


def test_the_first_attempt_counts_for_a_limit_of_time(run, make_guard):
    """tenacity's limit begins with the call, although its loop begins only when an attempt has failed."""
    script = Script(Boom(), Boom())

    def slow():
        time.sleep(0.05)
        return script()

    policy = tenacity.Retrying(stop=tenacity.stop_after_delay(0.05), reraise=True)
    with pytest.raises(Boom):
        run.result(guarded(make_guard(), retry=policy)(run.decorated(slow))())
    assert script.calls == 1


def test_hooks_are_called(run, make_guard):
    """All of them, on both kinds of function, whichever class they came with."""
    for kind in (tenacity.Retrying, tenacity.AsyncRetrying):
        heard = []
        policy = kind(
            before=lambda state, heard=heard: heard.append("before"),
            after=lambda state, heard=heard: heard.append("after"),
            before_sleep=lambda state, heard=heard: heard.append("before_sleep"),
        )
        assert run.result(guarded(make_guard(), retry=policy)(run.decorated(Script(Boom())))()) == "fine"
        assert heard == ["before", "after", "before_sleep", "before"]


def test_a_disabled_object_calls_once(run, make_guard):
    """tenacity's switch for tests."""
    script = Script(Boom())
    policy = tenacity.Retrying(enabled=False)
    with pytest.raises(Boom):
        run.result(guarded(make_guard(), retry=policy)(run.decorated(script))())
    assert script.calls == 1


def test_async_strategies_are_awaited(make_guard):
    """On a coroutine function every strategy may be one."""
    slept = []

    async def wanted(state):
        await asyncio.sleep(0)
        return state.outcome.failed

    async def quarter(state):
        return 0.25

    async def after_three(state):
        return state.attempt_number == 3

    async def sleep(seconds):
        slept.append(seconds)

    policy = tenacity.AsyncRetrying(retry=wanted, wait=quarter, stop=after_three, sleep=sleep, reraise=True)
    script = Script(Boom(), Boom(), Boom(), Boom())

    async def ask():
        return script()

    with pytest.raises(Boom):
        asyncio.run(guarded(make_guard(), retry=policy)(ask)())
    assert (script.calls, slept) == (3, [0.25, 0.25])


@pytest.mark.parametrize("name", ["retry", "wait", "stop", "before", "after", "before_sleep"])
def test_async_strategies_on_a_sync_function_are_refused_where_they_are_written(make_guard, name):
    """A coroutine is true and could not be awaited."""

    async def strategy(state):
        return True

    policy = tenacity.AsyncRetrying(**{name: strategy})
    with pytest.raises(ConfigurationError, match=f"the {name} strategy is async"):
        guarded(make_guard(), retry=policy)(Script())


def test_an_async_object_serves_sync_functions(make_guard):
    """Its sleep cannot be awaited there; the pause is kept all the same."""
    policy = tenacity.AsyncRetrying(wait=tenacity.wait_fixed(0.05), reraise=True)
    start = time.monotonic()
    assert guarded(make_guard(), retry=policy)(Script(Boom()))() == "fine"
    assert time.monotonic() - start >= 0.05


class CountingRetrying(tenacity.Retrying):
    """A user's subclass."""

    begun = 0

    def begin(self):
        type(self).begun += 1
        super().begin()


def test_a_subclass_keeps_its_overridden_methods(make_guard):
    """What it overrides runs."""
    assert guarded(make_guard(), retry=at_once(CountingRetrying()))(Script(Boom()))() == "fine"
    assert CountingRetrying.begun == 1


def test_threads_share_an_object(make_guard):
    """Each call keeps its own count, whoever else fails at the same time."""
    for policy in (
        retrying(attempts=4),
        tenacity.Retrying(stop=tenacity.stop_after_attempt(4), reraise=True),
    ):
        guard = make_guard(breaker=None)
        attempts = threading.local()
        wrong = []

        @guarded(guard, retry=at_once(policy))
        def work(failures, attempts=attempts):
            attempts.count += 1
            if attempts.count <= failures:
                raise Boom
            return attempts.count

        def many(attempts=attempts, work=work, wrong=wrong):
            for failures in [0, 1, 2, 3] * 25:
                attempts.count = 0
                try:
                    if work(failures) != failures + 1:
                        wrong.append(failures)
                except BaseException as error:
                    wrong.append(error)

        threads = [threading.Thread(target=many) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert guard.snapshot().succeeded == 800


def test_tasks_share_an_object(make_guard):
    """Even when its strategies wait, so that the tasks' decisions interleave."""

    async def wanted(state):
        await asyncio.sleep(0)
        return state.outcome.failed

    policy = tenacity.AsyncRetrying(retry=wanted, stop=tenacity.stop_after_attempt(4), reraise=True)
    guard = make_guard(breaker=None)

    @guarded(guard, retry=policy)
    async def work(script):
        await asyncio.sleep(0)
        return script()

    async def main():
        scripts = [Script(*[Boom() for _ in range(number % 4)]) for number in range(40)]
        assert await asyncio.gather(*map(work, scripts)) == ["fine"] * 40
        assert [script.calls for script in scripts] == [number % 4 + 1 for number in range(40)]

    asyncio.run(main())


def test_recursion_and_hooks_that_call_the_function(make_guard):
    """Each call has a loop of its own, also inside another's."""
    guard = make_guard(breaker=None)
    script = Script(Boom())
    inner = Script(Boom())
    policy = at_once(tenacity.Retrying(reraise=True))
    retried_inner = guarded(guard, retry=policy)(inner)
    policy.before_sleep = lambda state: inner.calls or retried_inner()
    assert guarded(guard, retry=policy)(script)() == "fine"
    assert (script.calls, inner.calls) == (2, 2)


def test_statistics_are_of_the_call_that_ended_last(run, make_guard):
    """Under the name that tenacity gives them."""
    script = Script(Boom(), Boom())
    policy = retrying(wait=tenacity.wait_fixed(0.5)).copy(sleep=lambda seconds: None)
    wrapped = guarded(make_guard(), retry=policy, fallback=str)(run.decorated(script))
    assert wrapped.statistics == {}
    run.result(wrapped())
    assert (wrapped.statistics["attempt_number"], wrapped.statistics["idle_for"]) == (3, 1.0)
    assert policy.statistics["attempt_number"] == 3
    run.result(wrapped())
    assert wrapped.statistics["attempt_number"] == 1


@pytest.mark.parametrize("error", [Boom(), CircuitOpenError("db", "circuit_open")], ids=["failed", "refused"])
def test_the_error_keeps_nothing_alive(error):
    """Once it is handled, so are the locals of the call: a connection must not wait for the collector."""
    kept = []

    class Connection:
        """What a failed attempt had in its hands."""

    def fail():
        connection = Connection()
        kept.append(weakref.ref(connection))
        raise copy.copy(error)

    async def fail_async():
        fail()

    async def main():
        with contextlib.suppress(type(error)):
            await at_once(retrying()).wraps(fail_async)()

    gc.disable()
    try:
        asyncio.run(main())
        with contextlib.suppress(type(error)):
            at_once(retrying()).wraps(fail)()
        assert kept
        assert not any(reference() for reference in kept)
    finally:
        gc.enable()


# --- every kind of callable ------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", ["ours", "AsyncRetrying", "retry_if_exception"])
def test_each_form_is_retried(make_guard, form, policy):
    """Three attempts, three admissions, the result of the last; kind, name and signature stay."""
    guard = make_guard()
    plain = FORMS[form]
    failures = [Boom(), Boom()]

    def is_failure_result(result):
        return False

    if inspect.iscoroutinefunction(guarded(guard)(plain)):

        @functools.wraps(plain)
        async def flaky(*args, **kwargs):
            if failures:
                raise failures.pop()
            return await plain(*args, **kwargs)

    else:

        @functools.wraps(plain)
        def flaky(*args, **kwargs):
            if failures:
                raise failures.pop()
            return plain(*args, **kwargs)

    policy = at_once(POLICIES[policy]).copy(retry=tenacity.retry_if_exception_type(Boom))
    wrapped = guarded(guard, retry=policy)(flaky)
    assert result_of(wrapped(1, fresh=True)) == "1 True"
    assert guard.snapshot().admitted == 3


@pytest.mark.parametrize("form", FORMS)
def test_each_form_keeps_its_kind(make_guard, form):
    """Also directly under the tenacity object."""
    import inspect  # noqa: PLC0415 - here alone

    plain = FORMS[form]
    for wrapped in (guarded(make_guard(), retry=retrying(), fallback=str)(plain), retrying().wraps(plain)):
        awaits = "async" in form or "coroutine" in form
        assert inspect.iscoroutinefunction(wrapped) == awaits
        assert inspect.signature(wrapped) == inspect.signature(plain)
        assert wrapped.__wrapped__ is plain
        assert result_of(wrapped(1, fresh=True)) == "1 True"


def test_methods_are_retried(make_guard):
    """Whichever decorator comes first."""
    guard = make_guard()
    policy = at_once(retrying())

    class Repository:
        script = Script(*[Boom() for _ in range(9)])
        failing = 3

        def step(self, value):
            Repository.failing -= 1
            if Repository.failing % 2 == 0:
                raise Boom
            return value

        @guarded(guard, retry=policy)
        def one(self, number):
            return self.step((self, number))

        @guarded(guard, retry=policy)
        @classmethod
        async def outer_class(cls, number):
            return cls().step((cls, number))

        @guarded(guard, retry=policy)
        @staticmethod
        def outer_static(number):
            return Repository().step(number)

    repository = Repository()
    assert repository.one(1) == (repository, 1)
    assert asyncio.run(Repository.outer_class(2)) == (Repository, 2)
    assert Repository.outer_static(3) == 3
    assert guard.snapshot().failed == 3


# --- without a guard -------------------------------------------------------------------------------


def test_the_object_can_be_called_and_can_wrap_functions(run):
    """As tenacity's objects are: called with a function, or wrapping it."""
    again = at_once(retrying(attempts=2))
    assert isinstance(again, tenacity.Retrying)
    assert run.result(again(run.decorated(Script(Boom())))) == "fine"
    script = Script(Boom(), Boom())
    with pytest.raises(Boom):
        run.result(again.wraps(run.decorated(script))())
    assert script.calls == 2


def test_a_block_is_retried_in_a_for_loop():
    """For a block of code instead of a function, in a thread or in a task."""
    again = at_once(retrying())
    script = Script(Boom(), Boom())
    for attempt in again:
        with attempt:
            result = script()
    assert (result, script.calls, again.statistics["attempt_number"]) == ("fine", 3, 3)

    async def main():
        script = Script(Boom(), Boom())
        async for attempt in again:
            with attempt:
                result = script()
        return result, script.calls

    assert asyncio.run(main()) == ("fine", 3)


def test_iteration_deposits_into_the_budget():
    """Once for each block, however often it is retried; its retries are withdrawn there."""
    budget = RetryBudget()
    again = at_once(retrying(attempts=3, budget=budget))
    script = Script(Boom(), Boom())
    for attempt in again:
        with attempt:
            script()
    assert (budget.snapshot().calls, budget.snapshot().retries) == (1, 2)


def test_iteration_follows_the_retry_rules():
    """A cancellation in the block is swallowed by tenacity's attempt, and raised again by us."""
    again = at_once(retrying(on=lambda error: True))
    tried = []
    for error in (asyncio.CancelledError(), KeyboardInterrupt(), CircuitOpenError("db", "circuit_open")):
        with pytest.raises(type(error)):
            for attempt in again:
                with attempt:
                    tried.append(attempt)
                    raise error
    assert len(tried) == 3


def test_tasks_iterate_over_one_object():
    """tenacity's own AsyncRetrying keeps the loop's state on itself, and mixes them up."""
    again = at_once(retrying(attempts=4))

    async def work(failures):
        script = Script(*[Boom() for _ in range(failures)])
        async for attempt in again:
            with attempt:
                await asyncio.sleep(0)
                result = script()
        return result, script.calls

    async def main():
        return await asyncio.gather(*(work(number % 4) for number in range(20)))

    assert asyncio.run(main()) == [("fine", number % 4 + 1) for number in range(20)]


def test_an_async_wait_is_refused_in_a_for_loop():
    """A function gets the same answer when it is decorated."""

    async def wait(state):
        return 0.0

    again = retrying(wait=wait)
    with pytest.raises(ConfigurationError, match="the wait strategy is async"):
        next(iter(again))
    with pytest.raises(ConfigurationError, match="the wait strategy is async"):
        again.wraps(Script())


# --- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("attempts", wrong) for wrong in (0, -1, True, 2.5, math.nan, math.inf, "3", None)]
    + [("wait", wrong) for wrong in (1.5, "1", -1, True, tenacity)]
    + [("budget", wrong) for wrong in (0.1, True, "0.1", RetryBudget)]
    + [("on", wrong) for wrong in ((), (OSError, 3), "OSError", BaseException, asyncio.CancelledError, 1)]
    + [("random", wrong) for wrong in (None, 0.5)],
)
def test_wrong_settings_are_refused_by_name(field, wrong):
    """With what is allowed."""
    with pytest.raises(ConfigurationError, match=f"retrying: {field} must be"):
        retrying(**{field: wrong})


def test_all_faults_are_told_at_once():
    """Three mistakes, one error."""
    with pytest.raises(ConfigurationError, match=r"attempts must .*; wait must .*; on must "):
        retrying(attempts=0, wait=3, on="x")


@pytest.mark.parametrize("wrong", [3, True, tenacity.retry, tenacity.stop_after_attempt(3), retrying])
def test_what_is_no_tenacity_object_is_refused(make_guard, wrong):
    """Where it is written, with the way out."""
    with pytest.raises(
        ConfigurationError, match=r"guarded: retry must be a tenacity.*write retry=retrying\(\)"
    ):
        guarded(make_guard(), retry=wrong)
