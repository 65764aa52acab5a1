"""Reads ``/status.json`` of a service, for the commands that show it.

Depends on HTTP and the format of the page; must not import guards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import click

__all__ = ["NOT_A_PAGE", "StatusPageError", "process_of", "read_page", "status_address"]

_TIMEOUT = 3.0
"""Seconds for one page."""

_LARGEST = 4_000_000
"""Most bytes of one page; a guard with 64 compartments has some thirty thousand."""

_NOT_FOUND = 404

_MOUNT = (
    ": no status page is there; app.mount('/internal', status_app([db])) makes one, in Django "
    "path('internal/', include('guardrails.integrations.django.urls'))"
)

NOT_A_PAGE = "this is no status page of guardrails"
"""The message for a page of another format."""


class StatusPageError(Exception):
    """There is no status page at an address; the message says why, without the address."""


def status_address(url: str) -> str:
    """Returns the address of the page below the URL of a service's status application.

    Raises:
        UsageError: It is not the URL of a service.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port
        good = False
    if not good or parts.username or parts.password:
        raise click.UsageError("this is no address of a service, such as http://127.0.0.1:8000/internal")
    path = parts.path if parts.path.endswith(".json") else parts.path.rstrip("/") + "/status.json"
    return parts._replace(path=path, fragment="").geturl()


def read_page(address: str) -> Mapping[str, Any]:
    """Reads the page; ``ready``, ``reasons`` and ``guards`` are there, and the guards are unchecked.

    ``pid`` and ``host`` are those of the process that answered, and None on a page without them.

    Raises:
        StatusPageError: There is none.
    """
    import http.client  # noqa: PLC0415 - for those commands alone that read a page
    import urllib.error  # noqa: PLC0415 - likewise
    import urllib.request  # noqa: PLC0415 - likewise

    request = urllib.request.Request(address, headers={"accept": "application/json"})  # noqa: S310 - http(s) only
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310 - likewise
            page = json.loads(answer.read(_LARGEST))
        return {
            **page,
            "ready": bool(page["ready"]),
            "reasons": list(page["reasons"]),
            "guards": page["guards"],
            "pid": page.get("pid"),
            "host": page.get("host"),
        }
    except urllib.error.HTTPError as error:
        error.close()
        hint = _MOUNT if error.code == _NOT_FOUND else ""
        raise StatusPageError(f"it answers {error.code}{hint}") from None
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        raise StatusPageError(f"it does not answer: {type(cause).__name__}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StatusPageError(NOT_A_PAGE) from None


def process_of(page: Mapping[str, Any]) -> str | None:
    """Returns the words for the process that has answered; None if its page does not name it."""
    if page.get("pid") is None:
        return None
    words = f"process {page['pid']} on {page['host']}"
    return "".join(char if char.isprintable() else "?" for char in words)[:200]
