"""A guard for each server."""

from __future__ import annotations

import os

from guardrails import BreakerPolicy, Guard

_RULES = BreakerPolicy(minimum_number_of_calls=5, wait_duration_in_open_state=1.0)
_TIMEOUT = float(os.environ.get("TIMEOUT", "1.0"))

primary = Guard("primary", max_concurrent_calls=4, timeout=20.0, breaker=_RULES)
replica = Guard("replica", max_concurrent_calls=4, timeout=_TIMEOUT, breaker=_RULES)
archive = Guard("archive", max_concurrent_calls=4, timeout=_TIMEOUT, breaker=_RULES)
