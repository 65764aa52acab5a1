"""The guards of the project's databases."""

from __future__ import annotations

from guardrails import Guard

db = Guard("db", max_concurrent_calls=8, max_wait_duration=1.0)
second = Guard("second", max_concurrent_calls=8, max_wait_duration=1.0)
