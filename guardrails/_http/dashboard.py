"""The page that shows guards in a browser. Must not import a guard: the page reads ``status.json``.

Its parts are the files in ``page/``. They are sent as one document, so that a browser loads nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from guardrails._http import status

__all__ = ["HEADERS", "PAGE"]

_PARTS = {"style": ("uPlot/uPlot.min.css", "style.css"), "script": ("uPlot/uPlot.iife.min.js", "page.js")}
"""The files inside each tag. uPlot draws the charts; its licence is beside it."""


def _text_of(*names: str) -> str:
    folder = files(__package__) / "page"
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def _hash_of(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


_INSIDE = {tag: _text_of(*names) for tag, names in _PARTS.items()}


def _page() -> bytes:
    text = _text_of("index.html")
    for tag, inside in _INSIDE.items():
        text = text.replace(f"<{tag}></{tag}>", f"<{tag}>{inside}</{tag}>")
    return text.encode()


PAGE = _page()

HEADERS = dict(status.HEADERS) | {
    "content-type": "text/html; charset=utf-8",
    "referrer-policy": "no-referrer",
    # Only the page's own style, script and figures: the name of a guard cannot load anything.
    "content-security-policy": (
        f"default-src 'none'; style-src {_hash_of(_INSIDE['style'])};"
        f" script-src {_hash_of(_INSIDE['script'])};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
}
