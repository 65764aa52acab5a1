"""Finds the outcome of a call from its exception or result. Depends on errors; must not import guards."""

from __future__ import annotations

import logging
from collections.abc import Callable

from guardrails._core.outcome import Outcome
from guardrails.errors import GuardrailsError

__all__ = ["classify", "classify_result"]

_log = logging.getLogger("guardrails")

# Looked up once: an enum's members are slow to reach in Python 3.11.
_SUCCESS, _FAILURE, _ABANDONED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED


def classify(error: BaseException | None, is_failure: Callable[[BaseException], object] | None) -> Outcome:
    """The outcome of a call that returned or raised.

    Args:
        error: The exception that the call raised; None if it returned.
        is_failure: The user's rule for subclasses of ``Exception``; None makes each of them a failure.

    Returns:
        ABANDONED for cancellation, KeyboardInterrupt, GeneratorExit and every error of an inner guard;
        otherwise the outcome by the rule. For an exception group the worst outcome of its leaves.
    """
    if error is None:
        return _SUCCESS
    if isinstance(error, BaseExceptionGroup):
        leaves = {classify(leaf, is_failure) for leaf in error.exceptions}
        for outcome in (_FAILURE, _ABANDONED):
            if outcome in leaves:
                return outcome
        return _SUCCESS
    if not isinstance(error, Exception) or isinstance(error, GuardrailsError):
        return _ABANDONED
    if is_failure is None:
        return _FAILURE
    return _FAILURE if _apply(is_failure, error, "is_failure") else _SUCCESS


def classify_result(result: object, is_failure_result: Callable[[object], object] | None) -> Outcome:
    """The outcome of a returned value: SUCCESS unless the user's rule calls it a failure."""
    if is_failure_result is None or not _apply(is_failure_result, result, "is_failure_result"):
        return _SUCCESS
    return _FAILURE


def _apply(rule: Callable[..., object], subject: object, name: str) -> bool:
    """Applies the user's rule. If the rule raises, logs that and applies the default rule."""
    try:
        return bool(rule(subject))  # inside the try: bool() of an array raises, too
    except Exception:  # noqa: BLE001 - logged with its traceback
        _log.exception("the %s rule raised; the default rule is used", name)
        return name == "is_failure"
