"""A request of an application whose routes the middleware cannot see. Must not import a framework.

Under WSGI only the framework knows the route. So the adapter reports the endpoint of a request before the
framework calls it; a `Problem` means: answer 503 instead.
"""

from __future__ import annotations

import math

from guardrails._http.answers import Problem
from guardrails._http.policy import RequestPolicy
from guardrails._http.routes import Route
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


class View(Route):
    """An endpoint whose requests run in many threads."""

    __slots__ = ("_lock",)

    def __init__(self, endpoint: object, template: str, lock: ForkedLock) -> None:
        super().__init__(endpoint, template)
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
    """The number of endpoints kept, for an application that makes new ones without end."""

    def __init__(self, policy: RequestPolicy, clock: Clock, *, learns: bool) -> None:
        self._policy = policy
        self._clock = clock
        self._learns = learns
        self._known: dict[int, View] = {}
        self._lock = ForkedLock()

    def check_view(self, endpoint: object, template: str, path: str) -> Problem | None:
        """Returns why the current request is refused, or notes its endpoint.

        Args:
            endpoint: The callable that the framework is about to call.
            template: The template of its path.
            path: The path of the request.
        """
        view = self._known.get(id(endpoint))
        if view is None:
            view = View(endpoint, template, self._lock)
            if len(self._known) < self.MOST:
                view = self._known.setdefault(id(endpoint), view)
        learnt = self._policy.needed_by(view.stats, self._clock()) if view.stats.needed else []
        gates = [gate for needed_guard in learnt for gate in needed_guard.call_settings.gates]
        needed = dict.fromkeys((*view.gates, *gates))
        problem = None if not needed or self._policy.exempt.find(path) else self._policy.missing(needed)
        scope = current()
        tracked = None if scope is None else scope.request
        if problem is None and self._learns and isinstance(tracked, TrackedRequest):
            tracked.view = view
        return problem
