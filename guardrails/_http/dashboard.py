"""The page that shows guards in a browser. Knows no guard: the page asks ``status.json`` next to it."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from guardrails._http import status

__all__ = ["HEADERS", "PAGE"]

_TEXT = files(__package__).joinpath("dashboard.html").read_text(encoding="utf-8")

PAGE = _TEXT.encode()


def _hash_of(tag: str) -> str:
    inside = _TEXT.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return "'sha256-" + base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() + "'"


HEADERS = dict(status.HEADERS) | {
    "content-type": "text/html; charset=utf-8",
    "referrer-policy": "no-referrer",
    # The page's own style and script and the figures beside it, and nothing else, whatever a guard is called.
    "content-security-policy": (
        f"default-src 'none'; style-src {_hash_of('style')}; script-src {_hash_of('script')};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
}
