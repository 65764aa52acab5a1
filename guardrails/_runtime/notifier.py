"""Notifies the listeners of a guard and logs its transitions. Depends on events; must not import guards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any

from guardrails._core.breaker import Transition
from guardrails._core.gate import Gate
from guardrails._runtime.guard_log import GuardLog, log, why_open
from guardrails._util.names import fields_of, identity_of
from guardrails.events import CallFinished, Event, Listener, StateChanged, wants

__all__ = ["Notifier", "log"]


class Notifier:
    """One guard's listeners.

    Attributes:
        name: The name of the guard or compartment.
        identity: The names of both.
        lock: The gate's lock. Events are numbered under it.
        core: The state of the guard's gate.
        listeners: The listeners.
        report: The log of refused and stopped calls. A compartment shares that of its guard.
        reports_calls: True if a listener wants `CallFinished`.
        last_error: The name of the class of the last error that was a failure; empty before one.
    """

    __slots__ = (
        "_seq",
        "_wanted",
        "core",
        "identity",
        "last_error",
        "listeners",
        "lock",
        "name",
        "report",
        "reports_calls",
    )

    core: Gate

    def __init__(self, name: str, listeners: Iterable[Listener]) -> None:
        self.name = name
        self.identity = identity_of(name)
        self.lock = threading.RLock()
        self.listeners = tuple(listeners)
        self._wanted: dict[type[Event], tuple[Listener, ...]] = {}
        self.reports_calls = bool(self.wanted(CallFinished))
        self._seq = 0
        self.last_error = ""
        self.report = GuardLog(name)

    def wanted(self, kind: type[Event]) -> tuple[Listener, ...]:
        """The listeners that want this kind of event."""
        found = self._wanted.get(kind)
        if found is None:
            found = self._wanted[kind] = tuple(each for each in self.listeners if wants(each, kind))
        return found

    def next_number(self) -> int:
        """The sequence number of this guard's next event."""
        with self.lock:
            self._seq += 1
            return self._seq

    def notify(self, kind: type[Event], **fields: Any) -> None:
        """Builds an event and calls the listeners that want it. An exception of a listener is logged."""
        guard, compartment = self.identity
        event = kind(guard=guard, compartment=compartment, **fields)
        for listener in self.wanted(kind):
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener cannot break a call
                log.exception("a listener of guard %r raised", self.name, extra=fields_of(self.name))

    def _why(self, change: Transition) -> str:
        holders = None
        try:
            if self.report.holders is not None and change.cause != "manual":
                bulkhead = self.core.bulkhead
                holders = self.report.holders(self.name, bulkhead.taken, bulkhead.limit)
        except Exception:  # noqa: BLE001 - logging must not break a call
            log.debug("the holders of %r could not be determined", self.name, exc_info=True)
        with self.lock:
            report = self.report
            why = why_open(self.core, change, holders, report.cause(is_open=False), self.last_error)
        return f"{why}; {report.hint}" if holders and report.hint else why

    def report_transition(self, number: int, change: Transition) -> None:
        """Reports a transition, or the crossing of a threshold in ``metrics_only``."""
        if change.old != change.new:
            self.report.remember("state", self.name, old=change.old, new=change.new, cause=change.cause)
            if change.new == "open" and self.core.mode == "shadow":
                self.report.sums.opened()
        name, extra = self.name, fields_of(self.name)
        if change.old == change.new:
            why = self._why(change)
            log.warning("circuit %r would have opened (%s): %s", name, change.cause, why, extra=extra)
        elif change.new == "open":
            why = self._why(change)
            log.warning("circuit %r: %s -> open (%s): %s", name, change.old, change.cause, why, extra=extra)
        else:
            if change.new == "closed":
                self.report.forget_cause()
            # An operator who was alerted by the opening must also see the end of it, and what was set by
            # hand. An unconfigured logger drops INFO.
            is_news = change.new == "closed" or change.cause == "manual"
            level = logging.WARNING if is_news else logging.INFO
            words = "circuit %r: %s -> %s (%s)"
            log.log(level, words, name, change.old, change.new, change.cause, extra=extra)
        self.notify(
            StateChanged,
            at=change.at,
            seq=number,
            old=change.old,
            new=change.new,
            cause=change.cause,
            retry_after=change.retry_after,
        )
