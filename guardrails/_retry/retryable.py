"""Decides if and when a call that raised may be retried. Depends on errors and deadlines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from guardrails._runtime.scope import remaining
from guardrails._util.checks import finite
from guardrails.errors import CallTimeoutError, CommitUnknownError, GuardrailsError

__all__ = ["exceeds_deadline", "is_commit_unknown", "is_final", "leaves", "may_retry", "pause_before_retry"]

_LONGEST = 60.0
"""Longest ``retry_after`` of an error, in seconds, that a retry waits for. With a longer one the call fails
at once."""

_CODE_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
)
"""Errors of wrong code, which a retry cannot change. ValueError, LookupError and RuntimeError are not among
them: an incomplete answer of a failing dependency may cause those."""


_DATABASE_ANSWERS = {"DataError", "IntegrityError", "NotSupportedError", "ProgrammingError"}
"""Errors for a wrong statement or wrong data. PEP 249 gives them these names in every driver, and SQLAlchemy
keeps the names; the drivers have no common base class."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside an exception group or behind tenacity's RetryError; else the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from leaves(member)
    elif error.__cause__ is not None and _is_named(error, {"RetryError"}):
        yield from leaves(error.__cause__)
    else:
        yield error


def is_final(error: BaseException) -> bool:
    """True for errors of wrong code, statements or data: no retry helps, and a fallback would hide them."""
    return any(isinstance(leaf, _CODE_ERRORS) or _is_named(leaf, _DATABASE_ANSWERS) for leaf in leaves(error))


def _is_named(error: BaseException, names: set[str]) -> bool:
    return any(cls.__name__ in names for cls in type(error).__mro__)


def may_retry(error: BaseException, handled: BaseException | None) -> bool:
    """True if a call that raised this error may be made again.

    False after a cancellation, an interrupt, a refusal (the guard has just shed that load), a COMMIT of
    unknown effect, and an error raised from one of these. In a group every error must permit it.

    Args:
        error: The error that the call raised.
        handled: The error that was being handled when the call was made. It is not the call's own.
    """
    return not is_commit_unknown(error, handled) and all(
        isinstance(leaf, Exception) and not any(map(_is_refusal, _chain(leaf, _cause)))
        for leaf in leaves(error)
    )


def is_commit_unknown(error: BaseException, handled: BaseException | None) -> bool:
    """True if an error comes from a COMMIT of unknown effect, even if a failed clean-up hides that.

    Args:
        error: The error that the call raised.
        handled: The error that was being handled when the call was made. It is not the call's own.
    """
    return any(
        isinstance(link, CommitUnknownError)
        for leaf in leaves(error)
        for link in _chain(leaf, _context, handled)
    )


def pause_before_retry(planned: object, error: BaseException | None) -> float:
    """Seconds until the retry: the planned pause, at least the error's ``retry_after``; inf for no retry.

    Args:
        planned: The result of the user's wait strategy. If it is no finite number, there is no retry.
        error: The error that the call raised; None if its result is to be retried.
    """
    if not finite(planned):
        return math.inf
    asked: object = getattr(error, "retry_after", None)
    least = float(asked) if finite(asked) else 0.0  # type: ignore[arg-type]
    if least > _LONGEST:
        return math.inf
    return max(0.0, least, float(planned))  # type: ignore[arg-type]


def exceeds_deadline(seconds: float) -> bool:
    """True if a pause would last until the ambient deadline or longer, or would not end."""
    left = remaining()
    return seconds == math.inf or (left is not None and seconds >= left)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, GuardrailsError) and not isinstance(error, CallTimeoutError)


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__


def _context(error: BaseException) -> BaseException | None:
    return error.__cause__ or error.__context__


def _chain(
    error: BaseException,
    previous: Callable[[BaseException], BaseException | None],
    end: BaseException | None = None,
) -> Iterator[BaseException]:
    """The leaves of an error and of its causes, up to ``end``. A chain may be circular."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and link is not end and id(link) not in seen:
        seen.add(id(link))
        yield from leaves(link)
        link = previous(link)
