"""What is answered when a call was refused or failed. Knows errors and callables, not guards."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from guardrails._core.outcome import Outcome
from guardrails._retry.classify import is_commit_unknown, is_final, leaves
from guardrails._runtime.classify import classify
from guardrails._util.callables import is_async, label
from guardrails.errors import ConfigurationError, GuardrailsError

__all__ = ["Fallback"]


class Fallback:
    """Stands in for calls that were refused or failed.

    Args:
        answer: The user's callable; gets the error.
        is_failure: The guard's rule for which exceptions are failures.
    """

    def __init__(
        self, answer: Callable[[Exception], Any], is_failure: Callable[[BaseException], object] | None
    ) -> None:
        self._answer = answer
        self._is_failure = is_failure

    def around(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function.

        Raises:
            TypeError: The fallback is async and ``fn`` is not.
        """
        if is_async(fn):
            return self._around_async(fn)
        if is_async(self._answer):
            raise TypeError(
                f"{label(fn)} is synchronous and its fallback {label(self._answer)} is async: "
                "nobody could await it"
            )

        @functools.wraps(fn)
        def answered(*args: Any, **kwargs: Any) -> Any:
            handled = sys.exception()
            try:
                return fn(*args, **kwargs)
            except Exception as error:
                if not self._serves(error, handled):
                    raise
                answer = self._answer(error)
                if type(answer) is CoroutineType:
                    answer.close()
                    raise TypeError(
                        f"{label(self._answer)}, the fallback of {label(fn)}, returned a coroutine: "
                        "make both of them async def"
                    ) from error
                return answer

        return answered

    def _around_async(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        async def answered(*args: Any, **kwargs: Any) -> Any:
            handled = sys.exception()
            try:
                return await fn(*args, **kwargs)
            except Exception as error:
                if not self._serves(error, handled):
                    raise
                answer = self._answer(error)
                return await answer if inspect.isawaitable(answer) else answer

        return answered

    def _serves(self, error: Exception, handled: BaseException | None) -> bool:
        """Whether the call was refused or failed, and nothing needs to be known that this would hide."""
        behind = list(leaves(error))
        if is_final(error) or is_commit_unknown(error, handled):
            return False
        if any(isinstance(leaf, ConfigurationError) or not isinstance(leaf, Exception) for leaf in behind):
            return False
        return any(
            isinstance(leaf, GuardrailsError) or classify(leaf, self._is_failure) is Outcome.FAILURE
            for leaf in behind
        )
