"""One guard that follows the verdict of its fleet. Depends on the guard and the rule of verdicts.

While the fleet's circuit is open, the guard's own circuit is kept open until a little after the time of the
next answer. Without contact to the store it half-opens by itself, as without a fleet.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from guardrails._core.policy import BreakerPolicy
from guardrails._guard.guard import Guard, snapshot_of
from guardrails.errors import ConfigurationError
from guardrails.fleet._records import LEASE, Reply
from guardrails.fleet._rulings import CLOSED, DECLINED, FAILED, OPEN, PASSED, PROBE, Ruling, VerdictRequest
from guardrails.fleet._worker import FleetWorker, Identity

__all__ = ["GuardVerdict"]

_RENEWAL = 1.0
"""Seconds between two requests."""

_QUICKEST = 0.25
"""Seconds between two requests while there is news: a round of probes has ended."""

_WHILE_FAILING = 0.5
"""Seconds between two requests while calls fail or are slow, so that the sums are recent, and while the fleet
is half-way to an open circuit, so that each worker learns of its opening soon."""

_KEPT_OPEN = 1.5
"""Seconds for which a circuit stays open beyond what the store says, until the next answer."""

_FOLLOWING = frozenset({"closed", "open", "half_open"})
"""States in which a circuit follows the fleet. The others were set by hand."""


class GuardVerdict:
    """The part of one guard in its fleet's verdict.

    Args:
        name: The name of the verdict.
        guard: The guard.
        worker: Asks the store.
        clock: Returns the time of ``tick`` in seconds.

    Raises:
        ConfigurationError: The guard has no circuit.

    Attributes:
        ruling: The last answer; None before the first.
        is_lost: True while there is no contact to the store.
    """

    reports_leaving = False
    is_member = True
    suffix = ""

    def __init__(
        self, name: str, guard: Guard, worker: FleetWorker, clock: Callable[[], float] = time.monotonic
    ) -> None:
        policy = guard.call_settings.policy
        if policy is None:
            raise ConfigurationError(f"guard {guard.name!r} has no circuit, so it cannot follow a verdict")
        self.budget = name
        self._guard = guard
        self._policy: BreakerPolicy = policy
        self._worker = worker
        self._clock = clock
        self._gate = guard.call_settings.gates[-1]
        self.forget()

    def forget(self) -> None:
        """Starts anew, in a child process."""
        self.ruling: Ruling | None = None
        self.is_lost = False
        self._heard: float | None = None
        self._seq = self._generation = 0
        self._asked = -1e9
        self._holds = self._probes = False
        self._released_at = 0.0
        self._refused_before = self._refused()
        self._told_bad = self._bad_calls()

    def join(self) -> None:
        """Begins to ask the store; repeated calls do nothing."""
        self._worker.join(self)

    def leave(self) -> None:
        """Ends asking the store."""
        self._worker.leave(self)

    # --- the housekeeper's thread -----------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """Returns True if the store is to be asked now."""
        self._heard = self._heard or now
        self.is_lost = now - self._heard > LEASE / 1000
        since = now - self._asked
        return (
            since >= _RENEWAL
            or (since >= _QUICKEST and self._probes and self._result() != 0)
            or (since >= _WHILE_FAILING and (self._bad_calls() != self._told_bad or self._may_open()))
        )

    def _may_open(self) -> bool:
        """True if the windows of all have half of what opens the circuit."""
        seen, policy = self.ruling, self._policy
        return (
            seen is not None
            and seen.state == CLOSED
            and (seen.troubled > 1 or seen.workers == 1)
            and 2 * seen.calls >= policy.minimum_number_of_calls
            and (
                2 * seen.failures >= policy.failure_rate_threshold * seen.calls
                or 2 * seen.slow >= policy.slow_call_rate_threshold * seen.calls
            )
        )

    # --- the fleet's thread -----------------------------------------------------------------------

    def request(self, identity: Identity) -> VerdictRequest:
        """Returns the next request."""
        self._asked = self._clock()
        self._told_bad = self._bad_calls()
        self._seq += 1
        seen, policy = snapshot_of(self._guard), self._policy
        counts = seen.calls, seen.failures, seen.slow_calls
        refused = self._refused()
        new, self._refused_before = refused - self._refused_before, refused
        return VerdictRequest(
            identity.worker,
            identity.instance,
            self._seq,
            self._generation,
            self._result(),
            *(counts if seen.state in {"closed", "metrics_only", "open"} else (0, 0, 0)),
            max(0, new),
            policy.minimum_number_of_calls,
            round(policy.failure_rate_threshold * 1_000_000),
            round(policy.slow_call_rate_threshold * 1_000_000),
            _milliseconds(policy.wait_duration_in_open_state),
            _milliseconds(policy.max_wait_duration_in_half_open_state),
        )

    def take_reply(self, answer: Reply | Ruling) -> bool:
        """Applies the answer to the last request; always True."""
        if not isinstance(answer, Ruling):
            return True
        self.ruling = answer
        self._heard = self._clock()
        self._generation = answer.generation
        if self._guard.state not in _FOLLOWING:
            self._holds = self._probes = False
        elif answer.state == PROBE:
            self._probe()
        elif answer.state == OPEN:
            self._probes = False
            self._hold(answer.left / 1000 + _KEPT_OPEN)
        elif answer.state == CLOSED and (self._holds or self._probes):
            self._holds = self._probes = False
            if self._guard.state != "closed":
                self._gate.step(self._gate.core.set_state, "reset", "fleet")
        return True

    def _hold(self, seconds: float) -> None:
        self._holds = True
        self._gate.step(self._gate.core.set_state, "open", "fleet")
        self._gate.step(self._gate.core.keep_open, seconds)

    def _probe(self) -> None:
        """Lets the guard make the fleet's round of probes; no other worker makes any."""
        if self._probes:
            return
        self._hold(0.0)
        self._probes = True
        self._gate.step(self._gate.core.keep_open, None)
        self._released_at = self._gate.core.breaker.open_until  # a round that fails sets a later one

    def _result(self) -> int:
        if self._guard.state not in _FOLLOWING or self._guard.mode == "off":
            return DECLINED  # no call of this guard would be a probe
        if not self._probes:
            return 0
        breaker = self._gate.core.breaker
        if breaker.state == "closed":
            return PASSED
        return FAILED if breaker.state == "open" and breaker.open_until > self._released_at else 0

    def _bad_calls(self) -> int:
        breaker = self._gate.core.breaker
        return breaker.failed + breaker.pending_failures + breaker.slow

    def _refused(self) -> int:
        rejected: Counter[str] = Counter()
        for gate in self._gate.report.gates.living():
            rejected.update(gate.core.rejected)
            rejected.update(gate.core.would_reject)
        return rejected["circuit_open"]


def _milliseconds(seconds: float) -> int:
    return min(3_600_000, round(seconds * 1000))
