"""Tells a `CircuitBreaker`'s listeners, pybreaker's and ours, what happened. Decides nothing."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pybreaker

from guardrails._core.outcome import Outcome
from guardrails._pybreaker.circuit import Transition
from guardrails.events import CallFinished, CallRejected, Event, StateChanged, wants

__all__ = ["PybreakerListeners", "is_old"]

_log = logging.getLogger("guardrails")


class PybreakerListeners:
    """The listeners of one breaker.

    pybreaker's have methods (``state_change``, ``failure`` ...), ours are called with an event. What any
    of them raises is logged. Never to be used while a lock is held.

    Attributes:
        listeners: The breaker's own list, which may grow and shrink at any time.
    """

    def __init__(
        self, breaker: pybreaker.CircuitBreaker, listeners: list[Any], clock: Callable[[], float]
    ) -> None:
        self._breaker = breaker
        self.listeners = listeners
        self._clock = clock
        self._seq = itertools.count(1)

    def label(self) -> str:
        """The breaker's name, or a word for one without."""
        return self._breaker.name or "circuit breaker"

    def before_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call was admitted and is about to start."""
        self._say("before_call", func, *args, **kwargs)

    def failure(self, error: BaseException) -> None:
        """A call failed."""
        self._say("failure", error)

    def success(self) -> None:
        """A call succeeded."""
        self._say("success")

    def turned(self, turns: list[Transition]) -> None:
        """The circuit went from state to state."""
        for turn in turns:
            level = logging.WARNING if turn.new == pybreaker.STATE_OPEN else logging.INFO
            _log.log(level, "circuit %r: %s -> %s (%s)", self.label(), turn.old, turn.new, turn.cause)
            self._say("state_change", _shown(self._breaker, turn.old), _shown(self._breaker, turn.new))
            self._report(
                StateChanged,
                at=turn.at,
                old=turn.old.replace("-", "_"),
                new=turn.new.replace("-", "_"),
                cause=turn.cause,
                retry_after=turn.retry_after,
            )

    def rejected(self, retry_after: float | None) -> None:
        """A call was refused."""
        self._report(CallRejected, at=self._clock(), reason="circuit_open", retry_after=retry_after)

    def finished(self, outcome: Outcome, started: float) -> None:
        """An admitted call ended."""
        now = self._clock()
        self._report(CallFinished, at=now, outcome=outcome, duration=max(0.0, now - started), slow=False)

    def _say(self, what: str, *args: Any, **kwargs: Any) -> None:
        for listener in tuple(self.listeners):
            if is_old(listener):
                self._safely(getattr(listener, what), self._breaker, *args, **kwargs)

    def _report(self, kind: type[Event], **fields: Any) -> None:
        event = None
        for listener in tuple(self.listeners):
            if is_old(listener) or not wants(listener, kind):
                continue
            event = event or kind(guard=self.label(), seq=next(self._seq), **fields)
            self._safely(listener, event)

    def _safely(self, listener: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            listener(*args, **kwargs)
        except Exception:  # noqa: BLE001 - logged; a listener cannot break a call
            _log.exception("a listener of circuit %r raised", self.label())


def is_old(listener: object) -> bool:
    """Whether a listener is one of pybreaker's, with a method for each occasion."""
    return hasattr(listener, "state_change")


def _shown(breaker: pybreaker.CircuitBreaker, state: str) -> pybreaker.CircuitBreakerState:
    return breaker._create_new_state(state)  # noqa: SLF001 - the one way to pybreaker's state objects
