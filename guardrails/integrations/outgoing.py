"""The headers that tell the next service how much time is left. Knows no HTTP client.

Any client that takes a dict of headers will do: httpx, requests, aiohttp, urllib3.
"""

from __future__ import annotations

from guardrails._http.answers import OUTGOING_HEADERS
from guardrails._runtime.scope import remaining
from guardrails._util.checks import Faults

__all__ = ["outgoing_headers"]


def outgoing_headers(*names: str) -> dict[str, str]:
    """What is left of the ambient budget, as request headers for a call to another service.

    ::

        client.get(url, headers=outgoing_headers(), timeout=remaining())

    A budget that is spent is stated as the least there is to say, 1 ms: the other service refuses, and
    what it cost is no more than asking.

    Args:
        *names: Any of ``X-Request-Timeout-Ms`` (the default), ``X-Envoy-Expected-Rq-Timeout-Ms``,
            ``grpc-timeout`` and ``Connect-Timeout-Ms``.

    Returns:
        A new dict; empty where there is no deadline.

    Raises:
        ConfigurationError: A name is none of these.
    """
    faults = Faults("outgoing_headers")
    for name in names:
        if str(name).lower() not in OUTGOING_HEADERS:
            faults.add("names", name, "one of " + ", ".join(OUTGOING_HEADERS))
    faults.raise_if_any()
    left = remaining()
    if left is None:
        return {}
    return {name: OUTGOING_HEADERS[name.lower()](left) for name in names or ("X-Request-Timeout-Ms",)}
