"""Guards redis-py clients: slots for checkouts, evidence from commands, deadlines that stop them."""

from __future__ import annotations

try:
    import redis  # noqa: F401 - checked here for a clear message
except ImportError as error:
    raise ImportError("redis-py is missing: pip install 'guardrails-db[redis]'") from error

from guardrails.integrations.redis._client import guard_client
from guardrails.integrations.redis._releases import giving_back
from guardrails.integrations.redis._stale import stale_if_error

__all__ = ["giving_back", "guard_client", "stale_if_error"]
