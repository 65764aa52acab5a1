"""Replaces the result of refused and failed calls. Depends on errors; must not import guards."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from guardrails._core.outcome import Outcome
from guardrails._retry.retryable import is_commit_unknown, is_final, leaves
from guardrails._runtime.outcomes import classify
from guardrails._util.callables import is_async, label
from guardrails.errors import ConfigurationError, GuardrailsError

__all__ = ["Fallback"]


class Fallback:
    """Calls the user's fallback for calls that were refused or failed.

    Args:
        fallback: The user's fallback. It takes the error.
        is_failure: The guard's rule for exceptions that are failures.
    """

    def __init__(
        self, fallback: Callable[[Exception], Any], is_failure: Callable[[BaseException], object] | None
    ) -> None:
        self._fallback = fallback
        self._is_failure = is_failure

    def around(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function.

        Raises:
            TypeError: The fallback is async and ``fn`` is not.
        """
        if is_async(fn):
            return self._around_async(fn)
        if is_async(self._fallback):
            raise TypeError(
                f"{label(fn)} is synchronous and its fallback {label(self._fallback)} is async: "
                "it cannot be awaited"
            )

        @functools.wraps(fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            handled = sys.exception()
            try:
                return fn(*args, **kwargs)
            except Exception as error:
                if not self._applies_to(error, handled):
                    raise
                answer = self._fallback(error)
                if type(answer) is CoroutineType:
                    answer.close()
                    raise TypeError(
                        f"{label(self._fallback)}, the fallback of {label(fn)}, returned a coroutine: "
                        "make both of them async def"
                    ) from error
                return answer

        return wrapper

    def _around_async(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            handled = sys.exception()
            try:
                return await fn(*args, **kwargs)
            except Exception as error:
                if not self._applies_to(error, handled):
                    raise
                answer = self._fallback(error)
                return await answer if inspect.isawaitable(answer) else answer

        return wrapper

    def _applies_to(self, error: Exception, handled: BaseException | None) -> bool:
        """True if the call was refused or failed, and the caller does not need the error itself."""
        found = list(leaves(error))
        if is_final(error) or is_commit_unknown(error, handled):
            return False
        if any(isinstance(leaf, ConfigurationError) or not isinstance(leaf, Exception) for leaf in found):
            return False
        return any(
            isinstance(leaf, GuardrailsError) or classify(leaf, self._is_failure) is Outcome.FAILURE
            for leaf in found
        )
