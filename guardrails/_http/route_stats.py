"""Learns which guards the requests of one route cannot be answered without. Must not import HTTP.

A route *needs* a guard when nearly all of its requests come to it, and a refusal of it became the answer of
one of them. Until then the route may have a fallback, an ``except`` or a second source. So its requests are
let in, and the guard refuses inside, where the application can handle that.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from guardrails._guard.call_settings import CallSettings
from guardrails._runtime.request_errors import RequestErrors
from guardrails._runtime.scope import RequestScope

__all__ = ["NeededGuard", "RouteStats"]

NEARLY_ALL = 0.95
ENOUGH = 20
MEMORY = 200
"""Requests. From so many on there is a habit; it is looked at again after as many; and at the third number
everything is halved, so that a route that changes its ways is known anew after a few hundred requests."""

PROMPT = 0.1
"""Seconds. A slot is held for a request that will want it this soon. Held for one that talks to somebody
else first, it would be missing to the others for all that time."""

MOST_GUARDS = 16

FORGIVEN = ENOUGH
"""Requests. An answer in spite of a guard's refusal or timeout ends the need for that guard at once. Then so
many refusals in a row must become the answer before the guard is needed again."""

TRIAL = 1.0
"""Seconds. While a needed guard refuses, one request of the route is let in each time this has passed. It
shows whether the route still needs the guard, and costs at most one thread a second."""


class NeededGuard(NamedTuple):
    """A guard that the route needs, and whether nearly all requests come to it promptly."""

    call_settings: CallSettings
    attached: bool
    prompt: bool


class _Count:
    __slots__ = ("balance", "prompt", "seen", "touched")

    def __init__(self, seen: int) -> None:
        self.seen = seen
        self.touched = self.prompt = 0
        self.balance = 0  # above 0: its last refusals were the answer


class RouteStats:
    """The habits of one route.

    Attributes:
        usual: The guards it needs, as last looked at.
    """

    __slots__ = ("_counts", "_requests", "_tried", "usual")

    def __init__(self) -> None:
        self._counts: dict[CallSettings, _Count] = {}
        self._requests = 0
        self._tried = -math.inf
        self.usual: tuple[NeededGuard, ...] = ()

    def learn(self, request: RequestScope, began: float, *, served: bool) -> None:
        """Learns from a request that is over.

        Args:
            request: What it has touched, and what went wrong. After a refusal or a timeout it says nothing
                about the guards it did not get to.
            began: When the application got it.
            served: Whether it was answered well.
        """
        touched, request_errors = request.touched, request.request_errors
        counts = self._counts
        for call_settings in touched:
            if call_settings not in counts and len(counts) < MOST_GUARDS:
                counts[call_settings] = _Count(self._requests)
        for call_settings, count in counts.items():
            at = touched.get(call_settings)
            if at is not None:
                count.seen += 1
                count.touched += 1
                count.prompt += at - began <= PROMPT
            elif request_errors is None:
                count.seen += 1
        self._requests += 1
        if request_errors is not None:
            self._weigh(request, request_errors, served=served)
        if self._requests % ENOUGH == 0:
            self._look()
            self._fade()

    def due(self, now: float) -> bool:
        """True once in `TRIAL` seconds: a request is let in although a needed guard refuses."""
        if now - self._tried < TRIAL:
            return False
        self._tried = now
        return True

    def _weigh(self, request: RequestScope, request_errors: RequestErrors, *, served: bool) -> None:
        """Looks at what a request that had a refusal or a timeout came to."""
        for call_settings in request.touched:
            count = self._counts.get(call_settings)
            names = {gate.name for gate in call_settings.gates}
            if count is None:
                continue
            if request_errors.fatal in names:
                count.balance = min(1, count.balance + 1)
            elif served and names & request_errors.failing:
                count.balance = -FORGIVEN
        if request_errors.fatal is not None:
            self._tried = request.clock()
        self._look()

    def _look(self) -> None:
        self.usual = tuple(
            NeededGuard(call_settings, call_settings.attached, _nearly(count.prompt, count.seen))
            for call_settings, count in self._counts.items()
            if count.balance > 0 and count.seen >= ENOUGH // 2 and _nearly(count.touched, count.seen)
        )

    def _fade(self) -> None:
        if self._requests >= MEMORY:
            self._requests //= 2
            for call_settings, count in list(self._counts.items()):
                count.seen //= 2
                count.touched //= 2
                count.prompt //= 2
                if not count.touched:
                    del self._counts[call_settings]


def _nearly(part: int, whole: int) -> bool:
    return part >= NEARLY_ALL * whole
