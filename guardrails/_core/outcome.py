"""What the end of a call says about the dependency. Knows exceptions, not guards."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable

from guardrails.errors import GuardrailsError

__all__ = ["Outcome", "classify", "classify_result"]

_log = logging.getLogger("guardrails")


class Outcome(enum.IntEnum):
    """The meaning of a finished call. Being *slow* is a separate mark on any of them."""

    SUCCESS = 0
    """The dependency answered: a result, or an error that proves it is alive."""
    FAILURE = 1
    """The dependency's fault, or our own deadline."""
    ABANDONED = 2
    """The caller left, or somebody else has already counted it: no evidence either way."""
    NEUTRAL = 3
    """It worked, and proves nothing: a COMMIT, a ping, a login. Counted as succeeded; no evidence."""


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
