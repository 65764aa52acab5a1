"""The figures of a guard at one moment. Depends on the core; must not import guards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrails._core.breaker import State
    from guardrails._core.gate import Gate
    from guardrails._core.shadow import Mode
    from guardrails._guard.pool_snapshot import PoolSnapshot
    from guardrails._runtime.guard_log import GuardLog

__all__ = ["GuardSnapshot", "take"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSnapshot:
    """The figures of one guard, all of the same moment. Times are seconds.

    Attributes:
        name: The guard's name.
        state: ``"closed" "open" "half_open" "forced_open" "disabled" "metrics_only"``.
        calls: Calls behind the next verdict of the circuit; in an open circuit, behind the last one.
        failures: Those of them that failed.
        slow_calls: Those of them that were slow.
        failure_rate: ``failures / calls``; None while there are too few calls for a verdict.
        slow_call_rate: ``slow_calls / calls``; None while there are too few calls for a verdict.
        in_use: Slots in use.
        max_concurrent_calls: Slots in total.
        usable_slots: Slots that calls may use now: fewer than there are during a recovery ramp, or by an
            adaptive limit.
        adaptive_limit: The number of concurrent calls that serves most, as far as is known; None without an
            `Adaptive`.
        recovery_ramp_left: Time until every slot is usable again; None without a recovery ramp.
        waiting: Callers in the queue.
        oldest_in_flight: Age of the oldest call; for a pool, of the oldest checkout. None without one. The
            connections of Redis's subscribers are left out.
        retry_after: Time until a refused caller may be admitted; None if that is unknown.
        admitted: Slots given out. This and the following count from the start of the guard.
        succeeded: Calls that succeeded. For a pool: statements, and also the COMMITs, pings and the like,
            whose success is no evidence and not among ``calls``.
        failed: Calls that failed.
        slow: Calls that were slow, with any outcome.
        abandoned: Calls that ended without evidence.
        late_results: Calls that began before the circuit's last transition and so changed nothing.
        rejected: Refusals by reason.
        rejected_by_parent: Calls of a compartment that were refused by the guard which contains it, and are
            among that one's ``rejected``; 0 for other guards.
        mode: ``"enforce" "shadow" "off"``. In the last two ``in_use`` counts the calls under way, up to the
            limit.
        would_reject: Calls let in in shadow that would have been refused, by reason.
        would_stop: Calls in shadow that have passed a deadline at which they would have been stopped.
        pool: The connections of the pool that the guard is attached to; None for other guards and for
            compartments.
        failure_cause: Known cause of the latest failures, such as ``"the server is read-only"``, or None.
    """

    name: str
    state: State
    calls: int
    failures: int
    slow_calls: int
    failure_rate: float | None
    slow_call_rate: float | None
    in_use: int
    max_concurrent_calls: int
    waiting: int
    oldest_in_flight: float | None
    retry_after: float | None
    admitted: int
    succeeded: int
    failed: int
    slow: int
    abandoned: int
    late_results: int
    rejected: Mapping[str, int]
    mode: Mode = "enforce"
    would_reject: Mapping[str, int] = field(default_factory=dict)
    would_stop: int = 0
    pool: PoolSnapshot | None = None
    failure_cause: str | None = None
    usable_slots: int = 0
    recovery_ramp_left: float | None = None
    adaptive_limit: int | None = None
    rejected_by_parent: int = 0
    orders: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def take(
    now: float, name: str, core: Gate, report: GuardLog, pool: PoolSnapshot | None = None
) -> GuardSnapshot:
    """Reads the figures of a gate and the cause in the log. The caller holds the gate's lock."""
    now = max(now, core.last)
    breaker, bulkhead = core.breaker, core.bulkhead
    calls, failures, slow, enough = breaker.evidence(now)
    # Copied at once: checkouts need no lock. One that is held on purpose has no start.
    starts = [since for since, _ in list(core.checkouts.values()) if since < math.inf]
    starts.extend(breaker.start_times())
    oldest = min(starts, default=None)
    ramp = breaker.ramp if breaker.ramp is not None and now < breaker.ramp.until else None
    return GuardSnapshot(
        name=name,
        state=breaker.state,
        calls=calls,
        failures=failures,
        slow_calls=slow,
        failure_rate=failures / calls if enough else None,
        slow_call_rate=slow / calls if enough else None,
        in_use=bulkhead.taken if core.enforces else min(core.under_way, bulkhead.limit),
        max_concurrent_calls=bulkhead.limit,
        waiting=len(bulkhead.queue) if core.enforces else 0,
        oldest_in_flight=None if oldest is None else now - oldest,
        retry_after=breaker.retry_after(now),
        admitted=core.admitted,
        succeeded=breaker.succeeded,
        failed=breaker.failed,
        slow=breaker.slow,
        abandoned=breaker.abandoned,
        late_results=breaker.late,
        rejected=core.rejected,
        mode=core.mode,
        would_reject={**core.would_reject},
        would_stop=core.would_stop,
        pool=pool,
        usable_slots=core.usable_at(now),
        adaptive_limit=None if core.adaptive is None else core.adaptive.limit,
        recovery_ramp_left=None if ramp is None else ramp.until - now,
        failure_cause=report.cause(is_open=breaker.state != "closed"),
    )
