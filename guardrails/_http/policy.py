"""What an HTTP middleware decides about a request. Knows neither ASGI nor WSGI, nor any wording."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from guardrails._core.gate import Refusal
from guardrails._guard.guard import Guard, with_parts
from guardrails._guard.locked_gate import LockedGate
from guardrails._guard.workload_names import whole_of
from guardrails._http.answers import DEADLINE_HEADERS, Problem, budget, retry_seconds
from guardrails._http.criticality import CriticalityRules
from guardrails._http.environ import Mounts
from guardrails._http.error_causes import note_fatal
from guardrails._http.paths import PathTable
from guardrails._http.retry_estimator import RetryEstimator
from guardrails._http.route_stats import NeededGuard, RouteStats
from guardrails._http.settings import HTTPSettings
from guardrails.errors import CallTimeoutError, RejectedError

__all__ = ["RequestPolicy", "gates_of"]

_FULL = ("bulkhead_full", "queue_timeout")
_FORESEEN = (*_FULL, "circuit_open")
"""The refusals that can be foreseen before a request is let in; others are about its time and rank."""


class RequestPolicy:
    """The settings of one middleware, checked, and the decisions that follow from them.

    Args:
        settings: The settings of the middleware.

    Attributes:
        criticality: The rules that rank requests; None if all have the same criticality.
        selective: Whether `admit` can ever refuse a request.
        timed: Whether `budget` can ever be anything but None.
    """

    def __init__(self, settings: HTTPSettings) -> None:
        self.criticality = CriticalityRules.of(settings)
        self._guards = settings.guards
        self._exempt = PathTable(dict.fromkeys(settings.exempt, True))
        self._requires = PathTable({path: gates_of(guards) for path, guards in settings.requires.items()})
        self._headers = {name.encode(): DEADLINE_HEADERS[name] for name in settings.deadline_headers}
        self._request_timeout = settings.request_timeout
        self._max_in_flight = settings.max_in_flight
        self._random = settings.random
        # Requests inside. Each is there once or not at all, so none is counted or released twice.
        self._inside: set[object] = set()
        self._retry_estimators: dict[LockedGate, RetryEstimator] = {}
        self._answered: set[str] = set()
        self.mounts = Mounts()
        self.selective = settings.max_in_flight is not None or bool(self._requires)
        self.timed = settings.request_timeout is not None or bool(self._headers)

    # --- before the application ----------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests counted against ``max_in_flight`` now."""
        return len(self._inside)

    @property
    def slots(self) -> int:
        """Calls the named guards admit at once, all together; 0 when no guard is named."""
        return sum(guard.snapshot().max_concurrent_calls for guard in self._guards)

    def budget(self, headers: Iterable[tuple[bytes, bytes]]) -> float | None:
        """Seconds for this request: the server's own limit, which a client can only lower."""
        own = self._request_timeout
        asked = budget(headers, self._headers) if self._headers else None
        return asked if own is None or (asked is not None and asked < own) else own

    def admit(self, request: object, path: str) -> Problem | None:
        """Lets a request in, or says why not. What was let in is let out with `release`."""
        if self.is_exempt(path):
            return None
        return self._missing(path) or self.count(request)

    def count(self, request: object) -> Problem | None:
        """Counts a request in, or says that the server is full."""
        if self._max_in_flight is None:
            return None
        # In first and counted after, so that two threads can never both take the last place.
        self._inside.add(request)
        if len(self._inside) > self._max_in_flight:
            self._inside.discard(request)
            return self._crowded()
        return None

    def full(self) -> Problem | None:
        """Why a request cannot be counted in now; None where it can, as it looks."""
        room = self._max_in_flight is None or len(self._inside) < self._max_in_flight
        return None if room else self._crowded()

    def _crowded(self) -> Problem:
        return Problem("bulkhead_full", None, retry_seconds("bulkhead_full", None, self._random))

    def release(self, request: object) -> None:
        """Lets a request out; one that was never counted changes nothing."""
        self._inside.discard(request)

    def is_exempt(self, path: str) -> bool:
        """Whether a path is let in whatever happens."""
        return self._exempt.find(path) is not None

    def required(self, path: str) -> tuple[LockedGate, ...]:
        """The gates that a request of this path has to pass."""
        return self._requires.find(path) or ()

    def _missing(self, path: str) -> Problem | None:
        return self.missing(self.required(path))

    def missing(self, gates: Iterable[LockedGate]) -> Problem | None:
        """Refuses what the circuit of one of these gates would refuse inside; takes nothing."""
        for gate in gates:
            # A closed circuit needs no step under its lock: the call inside makes one anyway.
            # A preview takes nothing, so the probes of a half-open circuit are still free inside.
            refusal = None if gate.core.calm else gate.preview()
            if refusal is not None:
                gate.tell_refusal(refusal)
                return self.turned_away(gate, refusal)
        return None

    def turned_away(self, gate: LockedGate, refusal: Refusal) -> Problem:
        """What to answer for a refusal that nobody raised."""
        reason, wait = refusal
        if wait is None:
            wait = self._retry_estimate(gate, reason)
        return Problem(reason, gate.name, retry_seconds(reason, wait, self._random))

    def needs(self, stats: RouteStats, now: float) -> list[NeededGuard]:
        """The guards, of those answered for here, that a route has shown to need; see `RouteStats`."""
        # What was learnt of a pool says nothing about a guard that was taken off it since.
        needed = [
            needed_guard
            for needed_guard in stats.usual
            if needed_guard.attached is needed_guard.call_settings.attached
            and self.answers_for(needed_guard.call_settings.name)
        ]
        if any(
            _may_refuse(gate) for needed_guard in needed for gate in needed_guard.call_settings.gates
        ) and stats.due(now):
            return []
        return needed

    def _retry_estimate(self, gate: LockedGate, reason: str) -> float | None:
        if reason not in _FULL:
            return None
        core = gate.core
        drain = self._retry_estimators.get(gate) or self._retry_estimators.setdefault(gate, RetryEstimator())
        return drain.seconds(core.last, core.admitted, len(core.bulkhead.queue))

    # --- after it --------------------------------------------------------------------------------

    def problem(self, error: BaseException) -> Problem | None:
        """What to answer for an exception; None for one that is none of our business.

        A group counts when each of its leaves does. A timeout in it outranks the refusals, because it
        may have done something.
        """
        first: RejectedError | CallTimeoutError | None = None
        for leaf in _leaves(error):
            if not isinstance(leaf, (RejectedError, CallTimeoutError)) or not self.answers_for(leaf.guard):
                return None
            if first is None or (isinstance(leaf, CallTimeoutError) and isinstance(first, RejectedError)):
                first = leaf
        if first is None:
            return None
        if isinstance(first, RejectedError) and first.reason in _FORESEEN:
            note_fatal(first.guard)
        if isinstance(first, RejectedError) and first.reason in _FULL and first.retry_after is None:
            for guard in with_parts(self._guards):
                if guard.name == first.guard and whole_of(guard.name) == whole_of(first.guard):
                    return self.turned_away(guard.call_settings.gates[0], Refusal(first.reason, None))
        return Problem.of(first, self._random)

    def answers_for(self, name: str) -> bool:
        """Whether a guard of this name is one whose refusals are answered here."""
        name = whole_of(name)  # every guard may have a compartment for the same route
        if not self._guards or name in self._answered:
            return True
        # Who is not known is looked for each time: compartments may be made after the middleware.
        self._answered = {guard.name for guard in with_parts(self._guards)}
        return name in self._answered


# --- guards and errors -----------------------------------------------------------------------------


def gates_of(guards: Iterable[Guard]) -> tuple[LockedGate, ...]:
    """The gates of several guards, each once, in the order in which they are passed."""
    return tuple(dict.fromkeys(gate for guard in guards for gate in guard.call_settings.gates))


def _may_refuse(gate: LockedGate) -> bool:
    bulkhead = gate.core.bulkhead
    return not gate.core.calm or bulkhead.taken >= bulkhead.limit


def _leaves(error: BaseException) -> Iterator[BaseException]:
    todo = [error]
    while todo:
        item = todo.pop()
        if isinstance(item, BaseExceptionGroup):
            todo.extend(reversed(item.exceptions))
        else:
            yield item
