"""Who is told what a guard did: listeners, and the log for its circuit. Knows events, no gate, no caller."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any

from guardrails._core.breaker import Transition
from guardrails._core.gate import Gate
from guardrails._runtime.guard_log import GuardLog, log, why_open
from guardrails.events import CallFinished, Event, Listener, StateChanged, wants

__all__ = ["Notifier", "log"]


class Notifier:
    """One guard's listeners.

    Attributes:
        name: The guard's name.
        lock: Whose steps the events are numbered in.
        core: The guard's gate.
        listeners: Who is told.
        report: What is written of refused and stopped calls; a compartment shares its guard's.
        tells_of_calls: Whether a listener wants to know of each call's end.
    """

    __slots__ = ("_seq", "_wanted", "core", "listeners", "lock", "name", "report", "tells_of_calls")

    core: Gate

    def __init__(self, name: str, listeners: Iterable[Listener]) -> None:
        self.name = name
        self.lock = threading.RLock()
        self.listeners = tuple(listeners)
        self._wanted: dict[type[Event], tuple[Listener, ...]] = {}
        self.tells_of_calls = bool(self.wanted(CallFinished))
        self._seq = 0
        self.report = GuardLog(name)

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
            except Exception:  # noqa: BLE001 - a listener cannot break a call
                log.exception("a listener of guard %r raised", self.name)

    def _why(self, change: Transition) -> str:
        holders = None
        try:
            if self.report.holders is not None and change.cause != "manual":
                bulkhead = self.core.bulkhead
                holders = self.report.holders(self.name, bulkhead.taken, bulkhead.limit)
        except Exception:  # noqa: BLE001 - a line of the log must not break a call
            log.debug("the holders of %r could not be found out", self.name, exc_info=True)
        with self.lock:
            return why_open(self.core, change, holders)

    def tell_change(self, number: int, change: Transition) -> None:
        """Tells of a transition of the circuit, or of one that there would have been."""
        if change.old == change.new:
            log.warning("circuit %r would have opened (%s): %s", self.name, change.cause, self._why(change))
        elif change.new == "open":
            log.warning(
                "circuit %r: %s -> open (%s): %s", self.name, change.old, change.cause, self._why(change)
            )
        else:
            # Whoever was woken by the opening must see the end of it, too.
            recovered = change.new == "closed" and change.cause != "manual"
            level = logging.WARNING if recovered or change.new == "forced_open" else logging.INFO
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
