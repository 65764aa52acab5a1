"""Decides about HTTP requests, for ASGI and WSGI alike. Depends on guards; must not word an answer.

Must not import a middleware or a framework.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from guardrails._core.gate import Refusal
from guardrails._core.shadow import UNCOUNTED, Mode
from guardrails._guard.compartments import with_compartments
from guardrails._guard.guard import LONG_TIMEOUT, Guard, snapshot_of
from guardrails._guard.locked_gate import LockedGate
from guardrails._guard.mode import resolve
from guardrails._http.answers import DEADLINE_HEADERS, Problem, budget, retry_seconds
from guardrails._http.criticality import CriticalityRules
from guardrails._http.environ import Mounts
from guardrails._http.error_causes import note_fatal
from guardrails._http.paths import PathTable
from guardrails._http.retry_estimator import RetryEstimator
from guardrails._http.route_stats import NeededGuard, RouteStats
from guardrails._http.settings import HTTPSettings
from guardrails._runtime.guard_log import log
from guardrails._runtime.scope import RequestScope
from guardrails._util.names import Identity
from guardrails.errors import CallAbandonedError, CallTimeoutError, ClientGoneError, RejectedError

__all__ = ["SAFE_METHODS", "RequestPolicy", "WithPolicy", "gates_of"]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""The methods whose requests change nothing (RFC 9110, section 9.2.1)."""

_FULL = ("bulkhead_full", "queue_timeout")
_FORESEEABLE = (*_FULL, "circuit_open")
"""The refusals that a preview can foresee. The others depend on the time and the rank of one request."""


class RequestPolicy:
    """The decisions of one middleware, by its settings.

    Attributes:
        criticality: The rules that rank requests; None if all have the same criticality.
        exempt: True for each path that is always let in.
        requires: The gates that the requests of a path need.
        selective: Whether `admit` can refuse a request.
        timed: Whether `limit` can set a deadline.
        would_reject: Requests that ``max_in_flight`` would have refused in shadow.
        disconnects: Requests whose client left before the answer was complete.
        mounts: The mounts of the application under WSGI.
    """

    def __init__(self, settings: HTTPSettings) -> None:
        self.criticality = CriticalityRules.of(settings)
        self.exempt = PathTable(dict.fromkeys(settings.exempt, True))
        self.requires = PathTable({path: gates_of(guards) for path, guards in settings.requires.items()})
        self.mounts = Mounts()
        self._guards = settings.guards
        self._headers = {name.encode(): DEADLINE_HEADERS[name] for name in settings.deadline_headers}
        self._request_timeout = seconds = settings.request_timeout
        if seconds is not None and seconds >= LONG_TIMEOUT:
            log.warning("middleware: its request_timeout is %g seconds; are these milliseconds?", seconds)
        self._max_in_flight = settings.max_in_flight
        self._random = settings.random
        # A set and not a number, so that no request can be counted or released twice.
        self._inside: set[object] = set()
        self._retry_estimators: dict[LockedGate, RetryEstimator] = {}
        self._answered: set[Identity] = set()
        self._mode = resolve(None)  # for a middleware that names no guard
        self.would_reject = self.disconnects = 0
        self._cancels = settings.cancel_on_disconnect
        self.selective = settings.max_in_flight is not None or bool(settings.requires)
        self.timed = seconds is not None or bool(self._headers)

    # --- before the application ----------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """The number of requests that count against ``max_in_flight`` now."""
        return len(self._inside)

    @property
    def slots(self) -> int:
        """The number of calls that all named guards together admit at once; 0 if no guard is named."""
        return sum(snapshot_of(guard).max_concurrent_calls for guard in self._guards)

    @property
    def mode(self) -> Mode:
        """``"enforce"`` if one of the guards enforces; without guards, the mode of the environment."""
        if not self._guards:
            return self._mode
        modes = [guard.mode for guard in self._guards]
        return "enforce" if "enforce" in modes else modes[0]

    def limit(self, request: RequestScope, headers: Iterable[tuple[bytes, bytes]], now: float) -> None:
        """Sets the deadline of a request: ``request_timeout`` from now, which a client can only lower.

        In shadow it bounds no guard that enforces, and those in shadow count what would have been stopped.
        """
        seconds = self._request_timeout
        asked = budget(headers, self._headers) if self._headers else None
        if seconds is None or (asked is not None and asked < seconds):
            seconds = asked
        if seconds is not None and (mode := self.mode) != "off":
            request.limit_until(now + seconds, enforced=mode == "enforce")

    def ends_with_client(self, method: str) -> bool:
        """True if the work of a request with this method is to end when its client leaves."""
        wanted = self._cancels == "all" or (bool(self._cancels) and method in SAFE_METHODS)
        return wanted and self.mode == "enforce"

    def note_disconnect(self) -> None:
        """Counts a client that left before its answer was complete."""
        self.disconnects += 1

    def admit(self, request: RequestScope, path: str, token: object = None) -> Problem | None:
        """Admits a request, or returns why it is refused. The caller releases an admitted request."""
        if self.exempt.find(path):
            return None
        return self.missing(self.requires.find(path) or ()) or self.count_in(request, token)

    def count_in(self, request: RequestScope, token: object = None) -> Problem | None:
        """Counts a request against ``max_in_flight``, or returns why it is refused.

        Args:
            request: The request.
            token: What is counted, and given to `release`; None is the request itself.
        """
        if self._max_in_flight is None:
            return None
        # Added first and counted after, so that two threads cannot both take the last place.
        counted = request if token is None else token
        self._inside.add(counted)
        if len(self._inside) > self._max_in_flight:
            self._inside.discard(counted)
            if self.mode == "enforce":
                return self._too_many()
            self._let_in(request)
        return None

    def _let_in(self, request: RequestScope) -> None:
        """Counts a request that would have been refused; its guards then count nothing of what it does."""
        self.would_reject += self.mode == "shadow"
        for gate in gates_of(with_compartments(self._guards)):
            if not gate.core.enforces:
                request.reserved.setdefault(gate.core, (gate, UNCOUNTED))

    def check_room(self) -> Problem | None:
        """Returns why a request would be refused by `count_in` now; counts nothing."""
        room = (
            self._max_in_flight is None or len(self._inside) < self._max_in_flight or self.mode != "enforce"
        )
        return None if room else self._too_many()

    def _too_many(self) -> Problem:
        return Problem("bulkhead_full", None, retry_seconds("bulkhead_full", None, self._random))

    def release(self, request: object) -> None:
        """Ends the count of a request; does nothing for one that is not counted."""
        self._inside.discard(request)

    def missing(self, gates: Iterable[LockedGate]) -> Problem | None:
        """Refuses what the circuit of one of these gates would refuse inside; takes no slot and no probe."""
        for gate in gates:
            # A closed circuit needs no step under its lock here: the call inside makes one anyway.
            # (`Gate.admits_all`, written out: most requests come by here.)
            core = gate.core
            # In shadow the reservation, or the call inside, counts the refusal.
            refusal = None if core.last < core.admits_until or not core.enforces else gate.preview()
            if refusal is None and gate.servers is not None and core.enforces:
                refusal = gate.preview_servers()
            if refusal is not None:
                gate.report_refusal(refusal, at_edge=True)
                return self.problem_of_refusal(gate, refusal)
        return None

    def problem_of_refusal(self, gate: LockedGate, refusal: Refusal) -> Problem:
        """Returns the answer for a refusal that was not raised as an error."""
        reason, wait = refusal
        if wait is None and reason in _FULL:
            wait = self._retry_estimate(gate)
        guard, compartment = gate.identity
        return Problem(reason, guard, retry_seconds(reason, wait, self._random), compartment)

    def needed_by(self, stats: RouteStats, now: float) -> list[NeededGuard]:
        """Returns the guards that a route has shown to need, of those answered for here; see `RouteStats`.

        While one of them refuses, this returns no guard for one request in each trial interval.
        """
        # A guard that was detached from its pool since it was learnt does not count.
        needed = [
            needed_guard
            for needed_guard in stats.needed
            if needed_guard.attached is needed_guard.call_settings.attached
            and self.answers_for(*needed_guard.call_settings.gates[0].identity)
        ]
        gates = (gate for needed_guard in needed for gate in needed_guard.call_settings.gates)
        return [] if any(map(_may_refuse, gates)) and stats.take_trial(now) else needed

    def _retry_estimate(self, gate: LockedGate) -> float | None:
        core = gate.core
        estimator = self._retry_estimators.get(gate) or self._retry_estimators.setdefault(
            gate, RetryEstimator()
        )
        return estimator.seconds(core.last, core.admitted, len(core.bulkhead.queue))

    # --- after the application -------------------------------------------------------------------

    def problem(self, error: BaseException) -> Problem | None:
        """Returns the answer for an exception; None for one that is not answered for here.

        A group is answered only if each of its leaves is. A timeout in it outranks the refusals, because
        the call that timed out may have had an effect.
        """
        first: RejectedError | CallTimeoutError | None = None
        for leaf in _leaves(error):
            if not isinstance(leaf, (RejectedError, CallTimeoutError)) or not self.answers_for(
                leaf.guard, leaf.compartment
            ):
                return None
            if first is None or (isinstance(leaf, CallTimeoutError) and isinstance(first, RejectedError)):
                first = leaf
        if first is None:
            return None
        who = first.guard, first.compartment
        if isinstance(first, ClientGoneError | CallAbandonedError):
            return Problem("client_gone", first.guard, None, first.compartment)
        if isinstance(first, RejectedError) and first.reason in _FORESEEABLE:
            note_fatal(who)
        if isinstance(first, RejectedError) and first.reason in _FULL and first.retry_after is None:
            for guard in with_compartments(self._guards):
                gate = guard.call_settings.gates[0]
                if gate.identity == who:
                    return self.problem_of_refusal(gate, Refusal(first.reason, None))
        return Problem.of(first, self._random)

    def answers_for(self, guard: str, compartment: str | None) -> bool:
        """True if the refusals of a guard, or of this compartment of it, are answered here."""
        who = {(guard, None), (guard, compartment)}
        if not self._guards or not who.isdisjoint(self._answered):
            return True
        # An unknown one is looked up each time: compartments may be made after the middleware.
        self._answered = {each.call_settings.gates[0].identity for each in with_compartments(self._guards)}
        return not who.isdisjoint(self._answered)


class WithPolicy:
    """Base of a middleware: what its users may read of its policy."""

    _policy: RequestPolicy

    @property
    def in_flight(self) -> int:
        """The number of requests that count against ``max_in_flight`` now."""
        return self._policy.in_flight

    @property
    def would_reject(self) -> int:
        """The number of requests that ``max_in_flight`` would have refused while the guards are in shadow."""
        return self._policy.would_reject

    @property
    def disconnects(self) -> int:
        """The number of clients that left before their answer was complete, by ``cancel_on_disconnect``."""
        return self._policy.disconnects


def gates_of(guards: Iterable[Guard]) -> tuple[LockedGate, ...]:
    """Returns the gates of several guards, each once, in the order in which a call passes them."""
    return tuple(dict.fromkeys(gate for guard in guards for gate in guard.call_settings.gates))


def _may_refuse(gate: LockedGate) -> bool:
    bulkhead = gate.core.bulkhead
    return not gate.core.admits_all or bulkhead.taken >= bulkhead.usable


def _leaves(error: BaseException) -> Iterator[BaseException]:
    todo = [error]
    while todo:
        item = todo.pop()
        if isinstance(item, BaseExceptionGroup):
            todo.extend(reversed(item.exceptions))
        else:
            yield item
