"""What a guard looks like at one moment, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrails._core.breaker import State
    from guardrails._core.gate import Gate

__all__ = ["GuardSnapshot", "take"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSnapshot:
    """The figures of one guard, all of the same moment.

    Attributes:
        name: The guard's name.
        state: ``"closed" "open" "half_open" "forced_open" "disabled" "metrics_only"``.
        calls: Calls the next (in an open circuit, the last) verdict rests on.
        failures: Those of them that failed.
        slow_calls: Those of them that were slow.
        failure_rate: ``failures / calls``; None while there are too few for a verdict.
        slow_call_rate: ``slow_calls / calls``; None likewise.
        in_use: Slots taken.
        max_concurrent_calls: Slots there are.
        waiting: Callers queueing for a slot.
        oldest_in_flight: Age in seconds of the oldest call (for a pool, checkout) under way, or None.
        retry_after: Seconds until a refused caller may try again, or None.
        admitted: Slots given out since the guard was made.
        succeeded: Calls that ended well; for a guarded pool, statements, and the COMMITs, pings and the like
            whose success is no evidence and is not among ``calls``.
        failed: Calls that failed.
        slow: Calls that were slow, whichever way they ended.
        abandoned: Calls that ended without evidence.
        late_results: Calls that ended after the circuit had moved on, and decided nothing.
        rejected: Refusals by reason.
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


def take(now: float, name: str, core: Gate) -> GuardSnapshot:
    """Reads one gate; to be called in a step."""
    now = max(now, core.last)
    breaker, bulkhead = core.breaker, core.bulkhead
    calls, failures, slow, enough = breaker.evidence(now)
    starts = [since for since, _ in list(core.checkouts.values())]  # copied at once: checkouts need no lock
    starts.extend(breaker.start_times())
    oldest = min(starts, default=None)
    return GuardSnapshot(
        name=name,
        state=breaker.state,
        calls=calls,
        failures=failures,
        slow_calls=slow,
        failure_rate=failures / calls if enough else None,
        slow_call_rate=slow / calls if enough else None,
        in_use=bulkhead.taken,
        max_concurrent_calls=bulkhead.limit,
        waiting=len(bulkhead.queue),
        oldest_in_flight=None if oldest is None else now - oldest,
        retry_after=breaker.retry_after(now),
        admitted=core.admitted,
        succeeded=breaker.succeeded,
        failed=breaker.failed,
        slow=breaker.slow,
        abandoned=breaker.abandoned,
        late_results=breaker.late,
        rejected=core.rejected,
    )
