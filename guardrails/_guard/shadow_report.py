"""What a guard would have done in shadow, in one table. Depends on guards; must not import a page."""

from __future__ import annotations

import math
from typing import Any

from guardrails._guard.compartments import with_compartments
from guardrails._guard.guard import Guard, attachment_of

__all__ = ["shadow_report"]


def shadow_report(guard: Guard) -> dict[str, Any] | None:
    """What enforcing would have done since the guard was in shadow first; None if it never was.

    Returns:
        ``since`` (`time.time`), ``judged`` calls or checkouts, those that would have been ``refused`` and
        ``stopped``, the ``openings`` of its circuits and the last one's time, ``routes``, the ``longest``
        beyond a limit, the ``highest`` number of concurrent calls if that was above the limit, the
        ``capacity`` of its pool if there is one, and the ``slowest`` call in seconds if one was slow.
    """
    gate = guard.call_settings.gates[0]
    if gate.report.sums.since is None:
        return None
    gates = [part.call_settings.gates[0].core for part in with_compartments((guard,))]
    report = gate.report.sums.report()
    refused = sum(sum(core.would_reject.values()) for core in gates)
    attachment = attachment_of(guard)
    return report | {
        "judged": gate.core.admitted
        - gate.core.refused_elsewhere
        - gate.report.sums.admitted_before
        + refused,
        "refused": refused,
        "stopped": gate.report.sums.stops,
        "highest": gate.core.highest if gate.core.highest > gate.core.bulkhead.limit else None,
        "slowest": gate.core.longest or None,
        "slow_after": None if gate.core.breaker.slow_after == math.inf else gate.core.breaker.slow_after,
        "limit": gate.core.bulkhead.limit,
        "capacity": None if attachment is None else attachment.most,
        "timeout": guard.timeout,
    }
