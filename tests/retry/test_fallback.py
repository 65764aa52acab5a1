"""`fallback=`: replaces the result of calls that were refused or failed, and of no others."""

from __future__ import annotations

import asyncio
import functools

import pytest
import tenacity

from guardrails import (
    BreakerPolicy,
    CallTimeoutError,
    CommitUnknownError,
    ConfigurationError,
    DeadlineSpentError,
    Guard,
    deadline,
    guarded,
    retrying,
)
from guardrails._retry.fallback import Fallback
from support.callables import FORMS, result_of
from support.calls import (
    Boom,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    boom,
    raised_from,
    raised_while_handling,
)


def raising(error):
    """A function that raises this error."""

    def fail():
        raise error

    return fail


def test_a_refusal_is_replaced(run, make_guard):
    """The fallback gets the error; the guarded function is not called."""
    guard = make_guard()
    guard.force_open()
    called = []
    wrapped = guarded(guard, fallback=lambda error: f"stale: {error.reason}")(run.decorated(called.append))
    assert run.result(wrapped(1)) == "stale: circuit_open"
    assert not called


def test_a_success_is_not_replaced(run, make_guard):
    """The fallback is not called."""
    wrapped = guarded(make_guard(), fallback=boom)(run.decorated(lambda: "fresh"))
    assert run.result(wrapped()) == "fresh"


RetryError = functools.partial(tenacity.RetryError, None)

ANSWERED = {
    "failure": Boom(),
    "sick database": OperationalError(),
    "half an answer": ValueError("Expecting value: line 1 column 1"),
    "key missing in an answer": KeyError("price"),
    "timeout": CallTimeoutError("db", 0.1),
    "refusal of an inner guard": DeadlineSpentError("cache", "deadline_spent"),
    "failure in a group": ExceptionGroup("", [Boom(), OSError()]),
    "retries used up": raised_from(RetryError(), Boom()),
    "results retried in vain": RetryError(),
    "a bug translated on purpose": raised_from(Boom(), TypeError()),
}

PASSED = {
    "cancellation": asyncio.CancelledError(),
    "Ctrl-C": KeyboardInterrupt(),
    "exit": SystemExit(1),
    "closed generator": GeneratorExit(),
    "wrong type": TypeError(),
    "wrong attribute": AttributeError(),
    "wrong name": UnboundLocalError(),
    "failed assertion": AssertionError(),
    "missing module": ModuleNotFoundError(),
    "not written yet": NotImplementedError(),
    "wrong setting": ConfigurationError(),
    "wrong statement": ProgrammingError(),
    "double entry": IntegrityError(),
    "commit of unknown effect": CommitUnknownError("db", 1.0),
    "clean-up that failed after the commit": raised_while_handling(Boom(), CommitUnknownError("db", 1.0)),
    "bug in a group": ExceptionGroup("", [Boom(), TypeError()]),
    "cancellation in a group": BaseExceptionGroup("", [Boom(), asyncio.CancelledError()]),
    "retried bug": raised_from(RetryError(), TypeError()),
}


@pytest.mark.parametrize("error", ANSWERED)
def test_refusals_and_failures_are_replaced(run, make_guard, error):
    """The fallback gets the error itself."""
    error = ANSWERED[error]
    wrapped = guarded(make_guard(), fallback=lambda seen: seen)(run.decorated(raising(error)))
    assert run.result(wrapped()) is error


@pytest.mark.parametrize("error", PASSED)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_errors_that_the_caller_must_see_are_not_replaced(error, is_async):
    """They come out unchanged, and the fallback is not called."""
    error = PASSED[error]
    called = []

    async def ask():
        raise error

    fn = Fallback(called.append, None).around(ask if is_async else raising(error))
    with pytest.raises(type(error)) as raised:
        result = fn()
        if is_async:
            result.send(None)
    assert raised.value is error
    assert not called


def test_an_exception_that_is_no_failure_is_not_replaced(run, make_guard):
    """A missing customer is no outage."""
    guard = make_guard(breaker=BreakerPolicy(is_failure=lambda error: not isinstance(error, LookupError)))
    wrapped = guarded(guard, fallback=repr)
    with pytest.raises(KeyError):
        run.result(wrapped(run.decorated(raising(KeyError("no customer 7"))))())
    assert run.result(wrapped(run.decorated(boom))()) == "Boom()"


def test_a_guard_without_a_circuit_falls_back_too(run, make_guard):
    """There every exception is a failure."""
    wrapped = guarded(make_guard(breaker=None), fallback=repr)(run.decorated(boom))
    assert run.result(wrapped()) == "Boom()"


def test_an_error_of_the_fallback_is_chained(run, make_guard):
    """The log shows both."""

    def worse(error):
        raise LookupError("the cache is empty")

    with pytest.raises(LookupError) as raised:
        run.result(guarded(make_guard(), fallback=worse)(run.decorated(boom))())
    assert isinstance(raised.value.__context__, Boom)


def test_a_fallback_may_reraise_the_error(run, make_guard):
    """It is the same object then, and not its own context."""
    error = Boom()

    def decline(seen):
        raise seen

    with pytest.raises(Boom) as raised:
        run.result(guarded(make_guard(), fallback=decline)(run.decorated(raising(error)))())
    assert raised.value is error
    assert raised.value.__context__ is None


def test_a_fallback_holds_no_slot(run, make_guard):
    """Other callers use the only one meanwhile; the fallback is no evidence."""
    guard = make_guard(max_concurrent_calls=1, max_wait_duration=0)

    def answer(error):
        assert guard.snapshot().in_use == 0
        return guard.run(lambda: "the same guard")

    assert run.result(guarded(guard, fallback=answer)(run.decorated(boom))()) == "the same guard"
    assert (guard.snapshot().failed, guard.snapshot().succeeded) == (1, 1)


def test_async_fallbacks_are_awaited(make_guard):
    """For coroutine functions a fallback may be one, or return something to await."""

    async def answer(error):
        await asyncio.sleep(0)
        return repr(error)

    async def ask():
        raise Boom

    for fallback in (answer, lambda error: answer(error), functools.partial(answer)):  # noqa: PLW0108
        assert asyncio.run(guarded(make_guard(), fallback=fallback)(ask)()) == "Boom()"


def test_an_async_fallback_of_a_sync_function_is_refused(make_guard):
    """Where it is decorated, or where it is called if it cannot be known before."""

    async def answer(error):
        return "never"

    with pytest.raises(TypeError, match=r"boom is synchronous and its fallback .*answer is async"):
        guarded(make_guard(), fallback=answer)(boom)
    with pytest.raises(TypeError, match="returned a coroutine") as raised:
        guarded(make_guard(), fallback=lambda error: answer(error))(boom)()  # noqa: PLW0108
    assert isinstance(raised.value.__cause__, Boom)


@pytest.mark.parametrize("wrong", [3, "stale", (), True])
def test_what_cannot_be_called_is_refused(make_guard, wrong):
    """By name."""
    with pytest.raises(ConfigurationError, match="guarded: fallback must be callable"):
        guarded(make_guard(), fallback=wrong)


def test_a_fallback_is_called_once_after_all_retries(run, make_guard):
    """Three attempts, then one fallback."""
    asked, answered = [], []

    def failing():
        asked.append(1)
        raise Boom

    def answer(error):
        answered.append(error)
        return "stale"

    policy = retrying().copy(sleep=lambda seconds: None)
    wrapped = guarded(make_guard(), retry=policy, fallback=answer)(run.decorated(failing))
    assert run.result(wrapped()) == "stale"
    assert (len(asked), len(answered)) == (3, 1)


def test_a_timeout_is_replaced():
    """The guard's own, and a caller's."""
    guard = Guard("db", max_concurrent_calls=2, timeout=0.05)

    @guarded(guard, fallback=lambda error: type(error).__name__)
    async def hang():
        await asyncio.sleep(60)

    async def hurried(seconds):
        with deadline(seconds):
            return await hang()

    assert asyncio.run(hang()) == "CallTimeoutError"
    assert asyncio.run(hurried(0.02)) == "CallTimeoutError"
    assert asyncio.run(hurried(0)) == "DeadlineSpentError"


def test_cancelled_in_the_call_or_in_the_fallback(make_guard):
    """The cancellation comes out, wherever it arrives."""
    guard = make_guard(max_concurrent_calls=1)

    async def pause(*_):
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def answer(error):
        await pause()
        return "stale"

    @guarded(guard, fallback=answer)
    async def ask():
        await pause()
        raise Boom

    async def cancel_after(steps):
        task = asyncio.create_task(ask())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert guard.snapshot().in_use == 0

    async def main():
        for steps in range(5):
            await cancel_after(steps)
        assert await ask() == "stale"

    asyncio.run(main())


@pytest.mark.parametrize("form", FORMS)
def test_each_form_falls_back(make_guard, form):
    """A refusal of any kind of callable is answered."""
    guard = make_guard()
    wrapped = guarded(guard, fallback=lambda error: error.reason)(FORMS[form])
    assert result_of(wrapped(1, fresh=True)) == "1 True"
    guard.force_open()
    assert result_of(wrapped(1)) == "circuit_open"


def test_methods_fall_back(make_guard):
    """Bound as before."""
    guard = make_guard()

    class Repository:
        @guarded(guard, fallback=lambda error: None)
        def one(self, number):
            return self, number

        @guarded(guard, fallback=lambda error: None)
        @classmethod
        async def outer_class(cls, number):
            return cls, number

    repository = Repository()
    assert repository.one(1) == (repository, 1)
    assert asyncio.run(Repository.outer_class(1)) == (Repository, 1)
    guard.force_open()
    assert repository.one(1) is None
    assert asyncio.run(repository.outer_class(1)) is None
