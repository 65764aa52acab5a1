"""Who is told what a guard did: listeners, and the log for its circuit. Knows events, no gate, no caller."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any

from guardrails._core.breaker import Change
from guardrails.events import CallFinished, Event, Listener, StateChanged, wants

__all__ = ["Telling", "log"]

log = logging.getLogger("guardrails")
log.addHandler(logging.NullHandler())


class Telling:
    """One guard's listeners.

    Attributes:
        name: The guard's name.
        lock: Whose steps the events are numbered in.
        listeners: Who is told.
        tells_of_calls: Whether a listener wants to know of each call's end.
    """

    __slots__ = ("_seq", "_wanted", "listeners", "lock", "name", "tells_of_calls")

    def __init__(self, name: str, listeners: Iterable[Listener]) -> None:
        self.name = name
        self.lock = threading.RLock()
        self.listeners = tuple(listeners)
        self._wanted: dict[type[Event], tuple[Listener, ...]] = {}
        self.tells_of_calls = bool(self.wanted(CallFinished))
        self._seq = 0

    def wanted(self, kind: type[Event]) -> tuple[Listener, ...]:
        """The listeners that want this kind of event."""
        found = self._wanted.get(kind)
        if found is None:
            found = self._wanted[kind] = tuple(each for each in self.listeners if wants(each, kind))
        return found

    def next_number(self) -> int:
        """An event's place in the order of this guard's events."""
        with self.lock:
            self._seq += 1
            return self._seq

    def tell(self, kind: type[Event], **fields: Any) -> None:
        """Builds an event and hands it to who wants it. What a listener raises is logged, no more."""
        event = kind(guard=self.name, **fields)
        for listener in self.wanted(kind):
            try:
                listener(event)
            except Exception:  # a listener cannot break a call
                log.exception("a listener of guard %r raised", self.name)

    def tell_change(self, number: int, change: Change) -> None:
        """Tells of a transition of the circuit, or of one that there would have been."""
        if change.old == change.new:
            log.warning("circuit %r would have opened: %s", self.name, change.cause)
        else:
            level = logging.WARNING if change.new in {"open", "forced_open"} else logging.INFO
            log.log(level, "circuit %r: %s -> %s (%s)", self.name, change.old, change.new, change.cause)
        self.tell(
            StateChanged,
            at=change.at,
            seq=number,
            old=change.old,
            new=change.new,
            cause=change.cause,
            retry_after=change.retry_after,
        )
