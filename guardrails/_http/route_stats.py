"""Learns which guards the requests of one route need. Depends on scopes; must not import HTTP.

A route *needs* a guard when nearly all of its requests use it and a refusal of it became the answer of one
of them. Before that the route may have a fallback, an ``except`` or a second source. So its requests are let
in, and the guard refuses inside, where the application can handle the error.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from guardrails._guard.call_settings import CallSettings
from guardrails._runtime.request_errors import RequestErrors
from guardrails._runtime.scope import RequestScope

__all__ = ["NeededGuard", "RouteStats"]

NEEDED_SHARE = 0.95
MINIMUM_REQUESTS = 20
HALVED_AFTER = 200
"""A route needs a guard that at least this share of its requests use. The set of needed guards is computed
once in `MINIMUM_REQUESTS` requests. The counts are halved after `HALVED_AFTER` requests, so that a change of
the route is learnt within a few hundred requests."""

PROMPT_WITHIN = 0.1
"""Seconds. A slot is reserved only if a request usually takes it over this soon: a reserved slot is missing
to all other requests."""

MAXIMUM_GUARDS = 16

REFUSALS_AFTER_A_GOOD_ANSWER = MINIMUM_REQUESTS
"""A good answer in spite of a guard's refusal or timeout ends the need for that guard at once. Then this many
refusals in a row must become the answer before the route needs the guard again."""

TRIAL_INTERVAL = 1.0
"""Seconds. While a needed guard refuses, one request of the route is let in in each interval. It shows
whether the route still needs the guard, and costs at most one thread a second."""


class NeededGuard(NamedTuple):
    """A guard that a route needs.

    Attributes:
        call_settings: Those of the guard.
        attached: Whether the guard was attached to a pool when it was learnt.
        prompt: Whether nearly all requests use it within `PROMPT_WITHIN`.
    """

    call_settings: CallSettings
    attached: bool
    prompt: bool


class _Count:
    __slots__ = ("balance", "prompt", "seen", "touched")

    def __init__(self, seen: int) -> None:
        self.seen = seen
        self.touched = self.prompt = 0
        self.balance = 0  # above 0 when its last refusals became the answer


class RouteStats:
    """Counts which guards the requests of one route use.

    Attributes:
        needed: The guards that the route needs, as last computed.
    """

    __slots__ = ("_counts", "_last_trial", "_requests", "needed")

    def __init__(self) -> None:
        self._counts: dict[CallSettings, _Count] = {}
        self._requests = 0
        self._last_trial = -math.inf
        self.needed: tuple[NeededGuard, ...] = ()

    def learn(self, request: RequestScope, began: float, *, served: bool) -> None:
        """Learns from a request that has ended.

        Args:
            request: The request. After a refusal or a timeout it is no evidence about the guards that it did
                not reach.
            began: The time at which the application got it.
            served: Whether it was answered well.
        """
        touched, request_errors = request.touched, request.request_errors
        counts = self._counts
        for call_settings in list(touched):  # other threads may still work for the request
            if call_settings not in counts and len(counts) < MAXIMUM_GUARDS:
                counts[call_settings] = _Count(self._requests)
        for call_settings, count in list(counts.items()):  # and others serve the same route
            at = touched.get(call_settings)
            if at is not None:
                count.seen += 1
                count.touched += 1
                count.prompt += at - began <= PROMPT_WITHIN
            elif request_errors is None:
                count.seen += 1
        self._requests += 1
        if request_errors is not None:
            self._judge_refusals(request, request_errors, served=served)
        if self._requests % MINIMUM_REQUESTS == 0:
            self._find_needed()
            self._halve()

    def take_trial(self, now: float) -> bool:
        """Returns True once in `TRIAL_INTERVAL` seconds: this request is let in although a guard refuses."""
        if now - self._last_trial < TRIAL_INTERVAL:
            return False
        self._last_trial = now
        return True

    def _judge_refusals(self, request: RequestScope, request_errors: RequestErrors, *, served: bool) -> None:
        """Learns from the answer of a request in which a guard refused or timed out."""
        for call_settings in list(request.touched):
            count = self._counts.get(call_settings)
            names = {gate.identity for gate in call_settings.gates}
            if count is None:
                continue
            if request_errors.fatal in names:
                count.balance = min(1, count.balance + 1)
            elif served and names & request_errors.failing:
                count.balance = -REFUSALS_AFTER_A_GOOD_ANSWER
        if request_errors.fatal is not None:
            self._last_trial = request.clock()
        self._find_needed()

    def _find_needed(self) -> None:
        self.needed = tuple(
            NeededGuard(call_settings, call_settings.attached, _nearly_all(count.prompt, count.seen))
            for call_settings, count in list(self._counts.items())
            if count.balance > 0
            and count.seen >= MINIMUM_REQUESTS // 2
            and _nearly_all(count.touched, count.seen)
        )

    def _halve(self) -> None:
        if self._requests >= HALVED_AFTER:
            self._requests //= 2
            for call_settings, count in list(self._counts.items()):
                count.seen //= 2
                count.touched //= 2
                count.prompt //= 2
                if not count.touched:
                    del self._counts[call_settings]


def _nearly_all(part: int, whole: int) -> bool:
    return part >= NEEDED_SHARE * whole
