"""Notifies the listeners of a `CircuitBreaker`, pybreaker's and ours. Depends on events."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pybreaker

from guardrails._core.outcome import Outcome
from guardrails._pybreaker.circuit import Transition
from guardrails.events import CallFinished, CallRejected, Event, StateChanged, wants

__all__ = ["PybreakerListeners", "is_pybreaker_listener"]

_log = logging.getLogger("guardrails")


class PybreakerListeners:
    """The listeners of one breaker.

    pybreaker's listeners have methods (``state_change``, ``failure`` ...); ours are called with an event. An
    exception of a listener is logged. The caller must not hold a lock.

    Attributes:
        listeners: The breaker's own list, which the user may change at any time.
    """

    def __init__(
        self, breaker: pybreaker.CircuitBreaker, listeners: list[Any], clock: Callable[[], float]
    ) -> None:
        self._breaker = breaker
        self.listeners = listeners
        self._clock = clock
        self._seq = itertools.count(1)

    def label(self) -> str:
        """The breaker's name; ``"circuit breaker"`` without one."""
        return self._breaker.name or "circuit breaker"

    def before_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Reports an admitted call before it starts."""
        self._notify_pybreaker("before_call", func, *args, **kwargs)

    def failure(self, error: BaseException) -> None:
        """Reports a failed call."""
        self._notify_pybreaker("failure", error)

    def success(self) -> None:
        """Reports a successful call."""
        self._notify_pybreaker("success")

    def state_changed(self, transitions: list[Transition]) -> None:
        """Logs and reports transitions."""
        for transition in transitions:
            level = logging.WARNING if transition.new == pybreaker.STATE_OPEN else logging.INFO
            old, new, cause = transition.old, transition.new, transition.cause
            _log.log(level, "circuit %r: %s -> %s (%s)", self.label(), old, new, cause)
            objects = _state_object(self._breaker, old), _state_object(self._breaker, new)
            self._notify_pybreaker("state_change", *objects)
            self._notify(
                StateChanged,
                at=transition.at,
                old=old.replace("-", "_"),
                new=new.replace("-", "_"),
                cause=cause,
                retry_after=transition.retry_after,
            )

    def rejected(self, retry_after: float | None) -> None:
        """Reports a refused call."""
        self._notify(CallRejected, at=self._clock(), reason="circuit_open", retry_after=retry_after)

    def finished(self, outcome: Outcome, started: float) -> None:
        """Reports the end of an admitted call."""
        now = self._clock()
        self._notify(CallFinished, at=now, outcome=outcome, duration=max(0.0, now - started), slow=False)

    def _notify_pybreaker(self, method: str, *args: Any, **kwargs: Any) -> None:
        for listener in tuple(self.listeners):
            if is_pybreaker_listener(listener):
                self._call(getattr(listener, method), self._breaker, *args, **kwargs)

    def _notify(self, kind: type[Event], **fields: Any) -> None:
        event = None
        for listener in tuple(self.listeners):
            if is_pybreaker_listener(listener) or not wants(listener, kind):
                continue
            event = event or kind(guard=self.label(), seq=next(self._seq), **fields)
            self._call(listener, event)

    def _call(self, listener: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            listener(*args, **kwargs)
        except Exception:  # noqa: BLE001 - logged; a listener cannot break a call
            _log.exception("a listener of circuit %r raised", self.label())


def is_pybreaker_listener(listener: object) -> bool:
    """True for a listener of pybreaker's kind, with a method for each event."""
    return hasattr(listener, "state_change")


def _state_object(breaker: pybreaker.CircuitBreaker, state: str) -> pybreaker.CircuitBreakerState:
    return breaker._create_new_state(state)  # noqa: SLF001 - pybreaker has no public way
