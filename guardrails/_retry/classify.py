"""What an error leaves to do: call again, when, or not at all. Knows errors and the ambient deadline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from guardrails._runtime.scope import remaining
from guardrails._util.checks import finite
from guardrails.errors import CallTimeoutError, CommitUnknownError, GuardrailsError

__all__ = ["is_commit_unknown", "is_final", "leaves", "may_retry", "no_time_for", "pause"]

_LONGEST = 60.0
"""Seconds of a dependency's own ``retry_after`` that are slept through. Whoever says more is not back
within this call: its caller is told now."""

_BUGS = (
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
)
"""What code raises that is wrong, whatever the dependency does. ValueError, LookupError and RuntimeError
are not among them: a sick dependency's half an answer raises those, too."""


_ANSWERS = {"DataError", "IntegrityError", "NotSupportedError", "ProgrammingError"}
"""Errors by which a database answers that the statement or its data is wrong. PEP 249 gives them these
names in every driver, and SQLAlchemy keeps them; a class in common they have not."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The error itself; or what a group of them holds, or what tenacity's RetryError gave up on."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from leaves(member)
    elif error.__cause__ is not None and _is_named(error, {"RetryError"}):
        yield from leaves(error.__cause__)
    else:
        yield error


def is_final(error: BaseException) -> bool:
    """Whether trying again cannot help and answering otherwise would hide something.

    So it is with a bug, and with a database's answer that a statement or its data is wrong.
    """
    return any(isinstance(leaf, _BUGS) or _is_named(leaf, _ANSWERS) for leaf in leaves(error))


def _is_named(error: BaseException, names: set[str]) -> bool:
    return any(cls.__name__ in names for cls in type(error).__mro__)


def may_retry(error: BaseException, handled: BaseException | None) -> bool:
    """Whether a call that ended with this error may be made again at all.

    Never after a cancellation or an interrupt, a refusal (the guard has just shed that load), or a
    COMMIT of unknown effect; nor after an error raised from one of these. Of a group, all must agree.

    Args:
        error: What the call raised.
        handled: The error that was being handled when the call was made, which is none of its own.
    """
    return not is_commit_unknown(error, handled) and all(
        isinstance(leaf, Exception) and not any(map(_is_refusal, _chain(leaf, _cause)))
        for leaf in leaves(error)
    )


def is_commit_unknown(error: BaseException, handled: BaseException | None) -> bool:
    """Whether a COMMIT of unknown effect is behind an error, be it hidden by a clean-up that failed, too.

    Args:
        error: What a call raised.
        handled: The error that was being handled when the call was made, which is none of its own.
    """
    return any(
        isinstance(link, CommitUnknownError)
        for leaf in leaves(error)
        for link in _chain(leaf, _context, handled)
    )


def pause(planned: object, error: BaseException | None) -> float:
    """Seconds to wait: what was planned, and at least the error's ``retry_after``; inf for never.

    Args:
        planned: What the user's wait strategy said. No number of seconds is no plan to come back.
        error: What the call raised, or None when its result is what is not wanted.
    """
    if not finite(planned):
        return math.inf
    asked: object = getattr(error, "retry_after", None)
    least = float(asked) if finite(asked) else 0.0  # type: ignore[arg-type]
    if least > _LONGEST:
        return math.inf
    return max(0.0, least, float(planned))  # type: ignore[arg-type]


def no_time_for(seconds: float) -> bool:
    """Whether a pause this long would leave nothing of the ambient deadline, or not end at all."""
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
    behind: Callable[[BaseException], BaseException | None],
    end: BaseException | None = None,
) -> Iterator[BaseException]:
    """An error and what is behind it, up to ``end``; chains can be circles."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and link is not end and id(link) not in seen:
        seen.add(id(link))
        yield from leaves(link)
        link = behind(link)
