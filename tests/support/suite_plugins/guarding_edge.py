"""The middleware's settings in the suites of web frameworks."""

from __future__ import annotations

from guardrails import Guard

__all__ = ["SETTINGS"]

SETTINGS = {
    "guards": [Guard("suite", max_concurrent_calls=100)],
    "requires": [Guard("needed", max_concurrent_calls=100)],
    "exempt": ["/exempt"],
    "request_timeout": 60.0,
    "deadline_headers": ["X-Request-Timeout-Ms"],
    "max_in_flight": 1000,
    "criticality": {"/": "CRITICAL"},
}
"""Every setting that makes the middleware do more and does not change an answer."""
