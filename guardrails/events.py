"""What a guard tells its listeners.

A listener is any callable that takes one of these records. Give it an attribute
``events = (StateChanged, ...)`` and it gets only those; an event that no listener wants is not built.
A listener whose ``events`` is no collection of event classes gets every event.
Listeners run after every lock has been let go, in the order of ``seq`` within one thread; what they
raise is logged and goes no further.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from guardrails._core.outcome import Outcome
    from guardrails.errors import Reason

__all__ = ["CallFinished", "CallRejected", "Event", "LeakFound", "Listener", "StateChanged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What every event carries.

    Attributes:
        guard: Name of the guard.
        at: Reading of the guard's clock in seconds.
        seq: Grows by one with each event of this guard; two threads may deliver out of order.
    """

    guard: str
    at: float
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Event):
    """The circuit went from ``old`` to ``new``.

    Attributes:
        old: State before, such as ``"closed"``.
        new: State after, such as ``"open"``.
        cause: What decided it: ``"failure_rate" "slow_call_rate" "consecutive_failures" "stalled"
            "probes_failed" "probes_passed" "wait_over" "manual" "divided"``. The last: the whole
            guard's circuit went over to its first compartment, when there came to be a second one.
        retry_after: Seconds the circuit stays open, for ``new == "open"``.
    """

    old: str
    new: str
    cause: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRejected(Event):
    """A call was refused before it started.

    Attributes:
        reason: As on :class:`guardrails.RejectedError`.
        retry_after: Seconds, or None when unknown.
    """

    reason: Reason
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(Event):
    """A call that had been admitted ended.

    Attributes:
        outcome: What it says about the dependency.
        duration: Seconds from admission to the end; waiting for a slot is not part of it.
        slow: Whether it took longer than the slow-call threshold.
    """

    outcome: Outcome
    duration: float
    slow: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakFound(Event):
    """A connection seems to have been forgotten. Told once of each checkout, by a thread of its own.

    Attributes:
        cause: ``"held"``: it was out for ``leak_after`` seconds and nothing runs on it. ``"dropped"``: the
            garbage collector found it, given up by everybody and given back by nobody.
        seconds: How long it has been out.
        where: The application's own lines that asked for it, such as ``"shop/orders.py:42 in load"``, the
            innermost first.
        route: The template of the route it was for, under the middleware; else None.
    """

    cause: Literal["held", "dropped"]
    seconds: float
    where: tuple[str, ...]
    route: str | None


Listener = Callable[[Event], None]


def wants(listener: object, kind: type[Event]) -> bool:
    """True if a listener wants this kind of event."""
    try:
        asked = getattr(listener, "events", None)
        if isinstance(asked, str) or not isinstance(asked, Sequence | AbstractSet | Mapping):
            return True
        classes = tuple(asked)
    except Exception:  # noqa: BLE001 - a proxy or a mock: it does not say what it wants
        return True
    if not all(isinstance(each, type) and issubclass(each, Event) for each in classes):
        return True
    return issubclass(kind, classes)
