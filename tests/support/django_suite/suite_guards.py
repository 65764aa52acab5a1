"""The guards under the databases of Django's own tests."""

from __future__ import annotations

from guardrails import Guard

default = Guard("default", max_concurrent_calls=4, timeout=60.0)
other = Guard("other", max_concurrent_calls=4, timeout=60.0)
