"""`retrying`, which makes a tenacity object with the library's defaults. Must not import guards."""

from __future__ import annotations

import logging
import random as _random
from collections.abc import Callable
from typing import Never, cast

import tenacity
from tenacity import RetryCallState

from guardrails._retry.budget import RetryBudget
from guardrails._retry.loop import Retrying
from guardrails._retry.retryable import is_final
from guardrails._retry.rules import DepositHook
from guardrails._util.checks import Faults, refuse_unknown

__all__ = ["retrying"]

Errors = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], object]
Wait = Callable[[RetryCallState], float]

_log = logging.getLogger("guardrails")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds: the bounds of the first pause and of the longest."""


def retrying(
    *,
    attempts: int = 3,
    wait: Wait | None = None,
    budget: RetryBudget | None = None,
    on: Errors | None = None,
    random: Callable[[], float] = _random.random,
    **_misspelt: Never,
) -> Retrying:
    """Makes a retry policy for calls that may be made more than once without harm.

    ::

        @guarded(db, retry=retrying(on=OperationalError, budget=budget))
        async def load(user_id: int) -> User: ...

        again = retrying(attempts=5)
        again(fetch, 42)                        # or: await again(fetch_async, 42)
        for attempt in again:                   # or: async for
            with attempt:
                ...

    The object is a tenacity ``Retrying`` for threads and asyncio tasks. A refusal, a cancellation, an
    interrupt and a `CommitUnknownError` are never retried. No pause lasts beyond the ambient deadline. A
    pause lasts at least the error's ``retry_after``. After the last attempt, the error of that attempt is
    raised. `guarded` applies the same rules to any tenacity object.

    Args:
        attempts: The largest number of attempts, including the first.
        wait: A tenacity wait strategy. None is exponential backoff with full jitter: a random time up to
            0.1 s, then up to twice as much each time, at most 2 s. Source: Brooker, "Exponential Backoff And
            Jitter" (AWS Architecture Blog, 2015).
        budget: A `RetryBudget`, shared by the call sites of a dependency; None for no limit.
        on: The exception class or classes to retry, or ``(exception) -> bool``. None is every
            ``Exception`` except those that a retry cannot change: errors of wrong code such as `TypeError`,
            and ``IntegrityError``, ``DataError``, ``NotSupportedError`` and ``ProgrammingError`` of a
            database.
        random: Returns a float in [0, 1) for the jitter.

    Raises:
        ConfigurationError: One or more arguments are wrong; the message names each of them.
    """
    refuse_unknown("retrying", _misspelt, retrying)
    faults = Faults("retrying")
    faults.count("attempts", attempts)
    faults.callable("wait", wait)
    if not isinstance(budget, RetryBudget | None):
        faults.add("budget", budget, "a RetryBudget or None")
    if not _are_errors(on):
        faults.add("on", on, "a class or classes of Exception, a function of the error, or None")
    faults.callable("random", random, none=False)
    faults.raise_if_any()
    return Retrying(
        retry=tenacity.retry_if_exception(_predicate(on)),
        wait=_full_jitter(random) if wait is None else wait,
        stop=_stop_after(attempts, budget),
        before=tenacity.before_nothing if budget is None else DepositHook(budget),
        reraise=True,
    )


def _are_errors(on: object) -> bool:
    if isinstance(on, tuple):
        return bool(on) and all(isinstance(kind, type) and issubclass(kind, Exception) for kind in on)
    if isinstance(on, type):
        return issubclass(on, Exception)
    return on is None or callable(on)


def _predicate(on: Errors | None) -> Callable[[BaseException], bool]:
    if on is None:
        return lambda error: not is_final(error)
    if isinstance(on, type | tuple):
        return lambda error: isinstance(error, on)

    def predicate(error: BaseException) -> bool:
        try:
            return bool(on(cast("Exception", error)))
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception("the rule on= of retrying() raised; the call is not retried")
            return False

    return predicate


def _full_jitter(random: Callable[[], float]) -> Wait:
    def wait(state: RetryCallState) -> float:
        doublings = min(state.attempt_number - 1, 32)  # 2.0 ** 1024 would be an OverflowError
        return random() * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**doublings)

    return wait


def _stop_after(attempts: int, budget: RetryBudget | None) -> Callable[[RetryCallState], bool]:
    def stop(state: RetryCallState) -> bool:
        if state.attempt_number >= attempts:
            return True
        return budget is not None and not budget.try_withdraw()

    return stop
