"""`retrying`: the retries of this library, as a tenacity object. Knows strategies, not the loop."""

from __future__ import annotations

import logging
import random as _random
from collections.abc import Callable
from typing import Never, cast

import tenacity
from tenacity import RetryCallState

from guardrails._retry.budget import RetryBudget
from guardrails._retry.classify import is_final
from guardrails._retry.loop import Retrying
from guardrails._retry.rules import PayIn
from guardrails._util.checks import Faults, refuse_unknown

__all__ = ["retrying"]

Errors = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], object]
Wait = Callable[[RetryCallState], float]

_log = logging.getLogger("guardrails")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds. The first pause is shorter than a user notices; the longest is shorter than a user's patience."""


def retrying(
    *,
    attempts: int = 3,
    wait: Wait | None = None,
    budget: RetryBudget | None = None,
    on: Errors | None = None,
    random: Callable[[], float] = _random.random,
    **_misspelt: Never,
) -> Retrying:
    """Retries for calls that may be made twice; asking for them says that yours may.

    ::

        @guarded(db, retry=retrying(on=OperationalError, budget=budget))
        async def load(user_id: int) -> User: ...

        again = retrying(attempts=5)
        again(fetch, 42)                        # or: await again(fetch_async, 42)
        for attempt in again:                   # or: async for
            with attempt:
                ...

    The object is a tenacity ``Retrying`` that serves threads and asyncio tasks alike. With any object
    of tenacity's, `guarded` holds to the same rules: a refusal, a cancellation, an interrupt and a
    `CommitUnknownError` are never retried; no pause goes past the ambient deadline; an error's
    ``retry_after`` is waited for. When the attempts are used up, the last error comes out itself.

    Args:
        attempts: How many in all, the first included.
        wait: A tenacity wait strategy. None waits a random time up to 0.1 s, then up to twice as much
            each time, at most 2 s: exponential backoff with full jitter, after Brooker,
            "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
        budget: Shared by call sites, so that retries cannot multiply the load.
        on: The exception class or classes to retry, or ``(exception) -> bool``. None is every
            ``Exception`` but those that trying again cannot change: bugs such as `TypeError`, and a
            database's ``IntegrityError``, ``DataError`` and ``ProgrammingError``.
        random: Where the jitter comes from; returns a float in [0, 1).

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
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
        retry=tenacity.retry_if_exception(_wanted(on)),
        wait=_full_jitter(random) if wait is None else wait,
        stop=_when_used_up(attempts, budget),
        before=tenacity.before_nothing if budget is None else PayIn(budget),
        reraise=True,
    )


def _are_errors(on: object) -> bool:
    if isinstance(on, tuple):
        return bool(on) and all(isinstance(kind, type) and issubclass(kind, Exception) for kind in on)
    if isinstance(on, type):
        return issubclass(on, Exception)
    return on is None or callable(on)


def _wanted(on: Errors | None) -> Callable[[BaseException], bool]:
    if on is None:
        return lambda error: not is_final(error)
    if isinstance(on, type | tuple):
        return lambda error: isinstance(error, on)

    def asked(error: BaseException) -> bool:
        try:
            return bool(on(cast("Exception", error)))
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception("the rule on= of retrying() raised; the call is not retried")
            return False

    return asked


def _full_jitter(random: Callable[[], float]) -> Wait:
    def wait(state: RetryCallState) -> float:
        doublings = min(state.attempt_number - 1, 32)  # 2.0 ** 1024 would be an OverflowError
        return random() * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**doublings)

    return wait


def _when_used_up(attempts: int, budget: RetryBudget | None) -> Callable[[RetryCallState], bool]:
    def stop(state: RetryCallState) -> bool:
        if state.attempt_number >= attempts:
            return True
        return budget is not None and not budget.try_withdraw()

    return stop
