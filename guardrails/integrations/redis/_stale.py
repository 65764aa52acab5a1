"""Answers with the last result of a function while it fails.

Depends on functions and their errors; must not import clients.
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec, TypeVar, cast

from guardrails._runtime.fork import ForkedLock
from guardrails._util.callables import is_async, is_generator, label
from guardrails._util.checks import Faults
from guardrails.errors import CallTimeoutError, RejectedError
from guardrails.integrations.redis._replies import server_failed

__all__ = ["stale_if_error"]

P = ParamSpec("P")
T = TypeVar("T")

_MISSING: Any = object()
"""Marks a missing answer; None can be an answer."""


def stale_if_error(
    *, max_age: float, max_entries: int = 1024, clock: Callable[[], float] = time.monotonic
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Returns a decorator that answers a refused or failed call with the last result of the same call.

    ::

        @stale_if_error(max_age=300)
        @guarded(cache, timeout=0.2)
        def price(article: str) -> bytes | None: ...

    The source is ``stale-if-error`` for HTTP caches (RFC 5861, section 4; Nottingham 2010). It applies to a
    ``RejectedError``, a ``CallTimeoutError`` and a failure of the server or the network. Any other error is
    the caller's own and is raised. The results are kept in this process, by the arguments, which must be
    hashable. A caller gets the kept object itself and must not change it.

    Args:
        max_age: Seconds for which a result may be used.
        max_entries: Number of results that are kept; the least recently used is dropped first.
        clock: Returns a monotonic time in seconds.

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
        TypeError: The function is a generator, whose result its first reader uses up.
    """
    faults = Faults("stale_if_error")
    faults.seconds("max_age", max_age)
    faults.count("max_entries", max_entries)
    faults.callable("clock", clock, none=False)
    faults.raise_if_any()

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        if is_generator(fn):
            raise TypeError(
                f"cannot remember what the generator {label(fn)} yields: decorate what makes a value"
            )
        answers = _LastAnswers(max_age, max_entries, clock)
        return cast("Callable[P, T]", (_around_async if is_async(fn) else _around)(fn, answers))

    return decorate


class _LastAnswers:
    """The last answers by their arguments, each with its time; the most recently used is at the end."""

    def __init__(self, max_age: float, max_entries: int, clock: Callable[[], float]) -> None:
        self._max_age = max_age
        self._max_entries = max_entries
        self._clock = clock
        self._lock = ForkedLock()
        self._answers: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()

    def store(self, key: Hashable, answer: Any) -> None:
        """Stores an answer in place of the previous one."""
        now = self._clock()
        with self._lock:
            self._answers[key] = now, answer
            self._answers.move_to_end(key)
            if len(self._answers) > self._max_entries:
                self._answers.popitem(last=False)

    def instead_of(self, error: Exception, key: Hashable) -> Any:
        """Returns the answer of an earlier call in place of an error.

        Raises:
            Exception: The error, if it is the caller's own or there is no answer young enough.
        """
        answer = self._recall(key) if _is_outage(error) else _MISSING
        if answer is _MISSING:
            raise error
        return answer

    def _recall(self, key: Hashable) -> Any:
        now = self._clock()
        with self._lock:
            noted, answer = self._answers.get(key, (now, _MISSING))
            if now - noted > self._max_age:
                del self._answers[key]
                return _MISSING
            if answer is not _MISSING:
                self._answers.move_to_end(key)
            return answer


def _is_outage(error: Exception) -> bool:
    return isinstance(error, RejectedError | CallTimeoutError) or server_failed(error)


def _around(fn: Callable[..., Any], answers: _LastAnswers) -> Callable[..., Any]:
    @functools.wraps(fn)
    def answered(*args: Any, **kwargs: Any) -> Any:
        key = _key(args, kwargs)
        try:
            answer = fn(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised again without an answer
            return answers.instead_of(error, key)
        answers.store(key, answer)
        return answer

    return answered


def _around_async(fn: Callable[..., Any], answers: _LastAnswers) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def answered(*args: Any, **kwargs: Any) -> Any:
        key = _key(args, kwargs)
        try:
            answer = await fn(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised again without an answer
            return answers.instead_of(error, key)
        answers.store(key, answer)
        return answer

    return answered


def _key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    key = (args, tuple(sorted(kwargs.items())))
    hash(key)  # so that an unhashable argument fails at the first call, not in the first outage
    return key
