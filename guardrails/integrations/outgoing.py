"""Builds the request headers that pass the deadline on to another service.

Depends on the ambient deadline; must not import an HTTP client. The headers are a dict, which httpx,
requests, aiohttp and urllib3 accept.
"""

from __future__ import annotations

from guardrails._http.answers import OUTGOING_HEADERS
from guardrails._runtime.scope import remaining
from guardrails._util.checks import Faults

__all__ = ["outgoing_headers"]


def outgoing_headers(*names: str) -> dict[str, str]:
    """Returns the time left of the ambient deadline as request headers for a call to another service.

    ::

        client.get(url, headers=outgoing_headers(), timeout=remaining())

    A spent deadline becomes the smallest value, 1 ms, so the other service refuses at once.

    Args:
        *names: The headers to set: any of ``X-Request-Timeout-Ms`` (the default),
            ``X-Envoy-Expected-Rq-Timeout-Ms``, ``grpc-timeout`` and ``Connect-Timeout-Ms``.

    Returns:
        A new dict; empty without a deadline.

    Raises:
        ConfigurationError: A name is not one of these.
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
