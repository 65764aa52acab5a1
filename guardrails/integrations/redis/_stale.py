"""The last answer, while no new one is to be had. Knows functions and their errors, not what they ask."""

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

_NOTHING: Any = object()
"""What is remembered of a call that never was; None may be an answer."""


def stale_if_error(
    *, max_age: float, max_entries: int = 1024, clock: Callable[[], float] = time.monotonic
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Answers with what the same call returned last, when it is refused or fails now.

    ::

        @stale_if_error(max_age=300)
        @guarded(cache, timeout=0.2)
        def price(article: str) -> bytes | None: ...

    The idea is that of ``stale-if-error`` for HTTP caches (RFC 5861, section 4). It serves for a
    ``RejectedError``, a ``CallTimeoutError`` and a failure of the server or of the way there; any other
    error is the caller's. What is returned is remembered in this process, by the arguments, which must be
    hashable, and handed out as it is: do not change it.

    Args:
        max_age: Seconds for which an answer may stand in for a new one.
        max_entries: How many are remembered; the one unused for longest is forgotten first.
        clock: Where the time comes from; a monotonic reading in seconds.

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
        TypeError: The function is a generator, whose answer is used up by its first reader.
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
        memory = _Memory(max_age, max_entries, clock)
        return cast("Callable[P, T]", (_around_async if is_async(fn) else _around)(fn, memory))

    return decorate


class _Memory:
    """Answers by what was asked, each with its moment, the one used last at the end."""

    def __init__(self, max_age: float, max_entries: int, clock: Callable[[], float]) -> None:
        self._max_age = max_age
        self._max_entries = max_entries
        self._clock = clock
        self._lock = ForkedLock()
        self._known: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()

    def note(self, key: Hashable, answer: Any) -> None:
        """Remembers an answer in place of the one before."""
        now = self._clock()
        with self._lock:
            self._known[key] = now, answer
            self._known.move_to_end(key)
            if len(self._known) > self._max_entries:
                self._known.popitem(last=False)

    def recall(self, key: Hashable, error: Exception) -> Any:
        """What to answer instead of an error, or ``_NOTHING``."""
        if not isinstance(error, RejectedError | CallTimeoutError) and not server_failed(error):
            return _NOTHING
        now = self._clock()
        with self._lock:
            noted, answer = self._known.get(key, (now, _NOTHING))
            if now - noted > self._max_age:
                del self._known[key]
                return _NOTHING
            if answer is not _NOTHING:
                self._known.move_to_end(key)
            return answer


def _around(fn: Callable[..., Any], memory: _Memory) -> Callable[..., Any]:
    @functools.wraps(fn)
    def answered(*args: Any, **kwargs: Any) -> Any:
        key = _key(args, kwargs)
        try:
            answer = fn(*args, **kwargs)
        except Exception as error:
            stale = memory.recall(key, error)
            if stale is _NOTHING:
                raise
            return stale
        memory.note(key, answer)
        return answer

    return answered


def _around_async(fn: Callable[..., Any], memory: _Memory) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def answered(*args: Any, **kwargs: Any) -> Any:
        key = _key(args, kwargs)
        try:
            answer = await fn(*args, **kwargs)
        except Exception as error:
            stale = memory.recall(key, error)
            if stale is _NOTHING:
                raise
            return stale
        memory.note(key, answer)
        return answer

    return answered


def _key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    key = (args, tuple(sorted(kwargs.items())))
    hash(key)  # an argument that cannot be remembered shows at the first call, not in the first outage
    return key
