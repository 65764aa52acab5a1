"""A request of an application whose routes the middleware cannot see. Must not import a framework.

Under WSGI only the framework knows the route. So the adapter reports the endpoint of a request before the
framework calls it; a `Problem` means: answer 503 instead.
"""

from __future__ import annotations

import math

from guardrails._http.answers import Problem
from guardrails._http.policy import RequestPolicy, gates_of
from guardrails._http.route_stats import RouteStats
from guardrails._http.routes import required_by
from guardrails._runtime.fork import ForkedLock
from guardrails._runtime.scope import Clock, RequestScope, Scope, current, ranked

__all__ = ["TrackedRequest", "Views"]


class TrackedRequest(RequestScope):
    """One request, from its arrival at the middleware.

    Attributes:
        rank: Its rank, or None; see `guardrails._core.criticality`.
        view: Its endpoint, once the adapter has reported it.
        served: True if a guard refused or timed out and the answer was no 5xx all the same.
    """

    __slots__ = ("rank", "served", "view")

    def __init__(self, clock: Clock, outer: Scope | None, rank: int | None) -> None:
        super().__init__(None, clock, outer)
        self.view: View | None = None
        self.served = False
        self.rank = rank
        if rank is not None:
            ranked.add(rank)

    def learn(self) -> None:
        """Lets the endpoint learn from the request; called when the request has ended."""
        if self.view is not None:
            self.view.learn(self)


class View:
    """An endpoint with the requests of one name, which run in many threads.

    Attributes:
        endpoint: The callable; kept, so that no other object gets its ``id``.
        gates: The gates of the guards it is marked with.
        stats: The guards that these requests use, learnt from them.
    """

    __slots__ = ("_lock", "endpoint", "gates", "stats")

    def __init__(self, endpoint: object, lock: ForkedLock) -> None:
        self.endpoint = endpoint
        self.gates = gates_of(required_by(endpoint))
        self.stats = RouteStats()
        self._lock = lock

    def learn(self, tracked: TrackedRequest) -> None:
        """Learns from a request that has ended."""
        with self._lock:
            # The request had its thread already, so no slot is reserved and none counts as prompt.
            self.stats.learn(tracked, -math.inf, served=tracked.served)


class Views:
    """The endpoints of an application, and the guards that each one needs.

    Args:
        policy: The decisions of the middleware.
        clock: A monotonic clock in seconds.
        learns: Whether to learn the guards of an endpoint; otherwise only its marks count.
    """

    MOST = 4096
    """The number of views kept, for an application that makes new endpoints without end."""

    def __init__(self, policy: RequestPolicy, clock: Clock, *, learns: bool) -> None:
        self._policy = policy
        self._clock = clock
        self._learns = learns
        self._known: dict[tuple[int, str], View] = {}
        self._lock = ForkedLock()

    def check_view(self, endpoint: object, name: str, path: str) -> Problem | None:
        """Returns why the current request is refused, or notes its endpoint.

        Args:
            endpoint: The callable that the framework is about to call.
            name: The request's name, the method with the template of its path. Each is learnt for itself, so
                that a circuit of the requests that read does not refuse those that write.
            path: The path of the request.
        """
        key = id(endpoint), name
        view = self._known.get(key)
        if view is None:
            view = View(endpoint, self._lock)
            if len(self._known) < self.MOST:
                view = self._known.setdefault(key, view)
        learnt = self._policy.needed_by(view.stats, self._clock()) if view.stats.needed else []
        gates = [gate for needed_guard in learnt for gate in needed_guard.call_settings.gates]
        needed = dict.fromkeys((*view.gates, *gates))
        problem = None if not needed or self._policy.exempt.find(path) else self._policy.missing(needed)
        scope = current()
        tracked = None if scope is None else scope.request
        if problem is None and self._learns and isinstance(tracked, TrackedRequest):
            tracked.view = view
        return problem
