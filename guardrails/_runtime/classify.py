"""Finds the outcome of a call from its exception or its result. Depends on errors; must not import guards."""

from __future__ import annotations

import logging
from collections.abc import Callable

from guardrails._core.outcome import Outcome
from guardrails.errors import GuardrailsError

__all__ = ["classify", "classify_result"]

_log = logging.getLogger("guardrails")


def classify(error: BaseException | None, is_failure: Callable[[BaseException], object] | None) -> Outcome:
    """Says what an exception that came out of a guarded call means.

    Args:
        error: What was raised, or None when the call returned.
        is_failure: The user's rule for ordinary exceptions; None counts every one as a failure.

    Returns:
        ABANDONED for cancellation, KeyboardInterrupt, GeneratorExit and every error of an inner
        guard; otherwise what the rule says. Of an exception group, the worst of its leaves.
    """
    if error is None:
        return Outcome.SUCCESS
    if isinstance(error, BaseExceptionGroup):
        leaves = {classify(leaf, is_failure) for leaf in error.exceptions}
        for outcome in (Outcome.FAILURE, Outcome.ABANDONED):
            if outcome in leaves:
                return outcome
        return Outcome.SUCCESS
    if not isinstance(error, Exception) or isinstance(error, GuardrailsError):
        return Outcome.ABANDONED
    if is_failure is None:
        return Outcome.FAILURE
    return Outcome.FAILURE if _asked(is_failure, error, "is_failure") else Outcome.SUCCESS


def classify_result(result: object, is_failure_result: Callable[[object], object] | None) -> Outcome:
    """Says what a returned value means: SUCCESS unless the user's rule calls it a failure."""
    if is_failure_result is None or not _asked(is_failure_result, result, "is_failure_result"):
        return Outcome.SUCCESS
    return Outcome.FAILURE


def _asked(rule: Callable[..., object], subject: object, name: str) -> bool:
    """Asks the user's rule; when the rule itself breaks, the default for its subject holds."""
    try:
        return bool(rule(subject))  # an array has no truth: that is a broken rule, too
    except Exception:  # noqa: BLE001 - logged with its traceback
        _log.exception("the %s rule raised; the default rule is used", name)
        return name == "is_failure"
