"""The page that shows guards in a browser. Must not import a guard: the page reads ``status.json``."""

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
    # Only the page's own style, script and figures: the name of a guard cannot load anything.
    "content-security-policy": (
        f"default-src 'none'; style-src {_hash_of('style')}; script-src {_hash_of('script')};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
}
