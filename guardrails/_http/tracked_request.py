"""A request on its way through an application that does its own routing. Knows no framework and no server.

Under WSGI nobody sees the routes before the framework does. So its integration says which endpoint a request
has come to, at the last moment before that is called, and hears then whether it is of any use.
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
    """One request, from the moment the middleware got it.

    Attributes:
        rank: How much it matters, if anybody has said; see `guardrails._core.criticality`.
        view: The endpoint it has come to, as soon as somebody says.
        served: Whether its answer was no 5xx, in spite of a guard's refusal or timeout before it.
    """

    __slots__ = ("rank", "served", "view")

    def __init__(self, at: float | None, clock: Clock, outer: Scope | None, rank: int | None) -> None:
        super().__init__(at, clock, outer)
        self.view: View | None = None
        self.served = False
        self.rank = rank
        if rank is not None:
            ranked.add(rank)

    def learn(self) -> None:
        """Notes with the endpoint what the request has touched; called when it is over."""
        if self.view is not None:
            self.view.learn(self)


class View(Route):
    """An endpoint that many threads work for."""

    __slots__ = ("_lock",)

    def __init__(self, endpoint: object, template: str, lock: ForkedLock) -> None:
        super().__init__(endpoint, template)
        self._lock = lock

    def learn(self, tracked: TrackedRequest) -> None:
        """Learns from a request that is over."""
        with self._lock:
            # It had its thread already, so no slot was held for it and none is wanted promptly.
            self.stats.learn(tracked, -math.inf, served=tracked.served)


class Views:
    """The endpoints of an application, and what their requests cannot be served without.

    Args:
        policy: Decides.
        clock: Where the time comes from.
        learns: Whether to learn what they touch; else only what they were marked with counts.
    """

    MOST = 4096
    """Endpoints. An application that makes new ones as it goes must not fill the memory with them."""

    def __init__(self, policy: RequestPolicy, clock: Clock, *, learns: bool) -> None:
        self._policy = policy
        self._clock = clock
        self._learns = learns
        self._known: dict[int, View] = {}
        self._lock = ForkedLock()

    def check_view(self, endpoint: object, template: str, path: str) -> Problem | None:
        """Says why the request that runs here cannot be served by its endpoint, or notes that it is there.

        Args:
            endpoint: What the framework is about to call.
            template: Its path as the application wrote it down.
            path: The request's path.
        """
        view = self._known.get(id(endpoint))
        if view is None:
            view = View(endpoint, template, self._lock)
            if len(self._known) < self.MOST:
                view = self._known.setdefault(id(endpoint), view)
        usual = self._policy.needs(view.stats, self._clock()) if view.stats.usual else []
        learned = [gate for needed_guard in usual for gate in needed_guard.call_settings.gates]
        needed = dict.fromkeys((*view.gates, *learned))
        problem = None if not needed or self._policy.is_exempt(path) else self._policy.missing(needed)
        scope = current()
        tracked = None if scope is None else scope.request
        if problem is None and self._learns and isinstance(tracked, TrackedRequest):
            tracked.view = view
        return problem
