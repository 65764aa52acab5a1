"""The events that a guard reports to its listeners. Depends on outcomes and errors.

A listener is a callable that takes one event. With an attribute ``events = (StateChanged, ...)`` it gets only
events of these classes; if ``events`` is no collection of event classes, it gets every event. An event that
no listener wants is not built.

A listener runs after the guard has released its locks. Within one thread the events come in the order of
``seq``. An exception of a listener is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from guardrails._core.outcome import Outcome
    from guardrails.errors import Reason

__all__ = [
    "CallFinished",
    "CallRejected",
    "Event",
    "FleetBack",
    "FleetLost",
    "LeakFound",
    "LeaseChanged",
    "Listener",
    "StateChanged",
    "WouldReject",
    "WouldStop",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The base of all events.

    Attributes:
        guard: The name of the guard.
        compartment: The name of the compartment of the guard in which it happened; None for the guard itself.
        at: The time on the guard's clock in seconds.
        seq: The number of the event, which grows by one for each event of the guard, or of the compartment.
            Events of different threads may arrive out of order.
    """

    guard: str
    at: float
    seq: int
    compartment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Event):
    """The circuit went from ``old`` to ``new``.

    Attributes:
        old: State before, such as ``"closed"``.
        new: State after, such as ``"open"``.
        cause: One of ``"failure_rate" "slow_call_rate" "consecutive_failures" "stalled"
            "probes_failed" "probes_passed" "wait_over" "manual" "divided" "fleet"``. ``"divided"``: an open
            circuit passed from the guard to its first compartment when the second one was made. ``"fleet"``:
            the workers of a fleet together have opened or closed it.
        retry_after: Seconds for which the circuit stays open, if ``new`` is ``"open"``.
    """

    old: str
    new: str
    cause: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRejected(Event):
    """A call was refused before it started.

    Attributes:
        reason: As in `guardrails.RejectedError`.
        retry_after: Seconds after which a call may be admitted; None if that is unknown.
    """

    reason: Reason
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WouldReject(Event):
    """In shadow: a call was let in that enforcing would have refused.

    Attributes:
        reason: As in `guardrails.RejectedError`.
        retry_after: Seconds after which a call may be admitted; None if that is unknown.
        route: The method and template of its request, such as ``"GET /orders/{id}"``; None outside a request
            of the middleware, or if the template is not known.
    """

    reason: Reason
    retry_after: float | None = None
    route: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WouldStop(Event):
    """In shadow: a call passed a deadline at which enforcing would have stopped it. It continues.

    Attributes:
        timeout: Seconds that it would have been given.
        where: The application's lines that made the call, innermost first; empty if they are not known.
        route: As in `WouldReject`.
    """

    timeout: float
    where: tuple[str, ...] = ()
    route: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(Event):
    """An admitted call ended.

    Attributes:
        outcome: The evidence about the dependency.
        duration: Seconds from admission to the end, without the wait for a slot.
        slow: True if it took longer than the slow-call threshold.
    """

    outcome: Outcome
    duration: float
    slow: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakFound(Event):
    """A connection was probably leaked. Reported once for each checkout, from the housekeeper's thread.

    Attributes:
        cause: ``"held"``: it has been held for ``leak_after`` seconds and is idle. ``"dropped"``: the
            garbage collector found it unreferenced, and it had not been returned to the pool.
        seconds: Seconds since the checkout.
        where: The application's lines that made the checkout, such as ``"shop/orders.py:42 in load"``,
            innermost first.
        route: The template of the request's route; None outside a request of the middleware.
    """

    cause: Literal["held", "dropped"]
    seconds: float
    where: tuple[str, ...]
    route: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseChanged(Event):
    """A fleet's lease has changed the number of connections that the guard's pool may have open.

    Attributes:
        budget: The name of the budget.
        old: Number before.
        new: Number now.
    """

    budget: str
    old: int
    new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLost(Event):
    """The lease could not be renewed in time.

    Attributes:
        budget: The name of the budget.
        keeps: Number of connections that the pool keeps without contact.
    """

    budget: str
    keeps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBack(Event):
    """The lease could be renewed again.

    Attributes:
        budget: The name of the budget.
        grant: Number of connections that it gives.
    """

    budget: str
    grant: int


Listener = Callable[[Event], None]


def wants(listener: object, kind: type[Event]) -> bool:
    """True if a listener wants this kind of event."""
    try:
        asked = getattr(listener, "events", None)
        if isinstance(asked, str) or not isinstance(asked, Sequence | AbstractSet | Mapping):
            return True
        classes = tuple(asked)
    except Exception:  # noqa: BLE001 - a proxy or a mock may raise anything
        return True
    if not all(isinstance(each, type) and issubclass(each, Event) for each in classes):
        return True
    return issubclass(kind, classes)
