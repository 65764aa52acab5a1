"""Reads values from texts, such as environment variables. Depends on nothing of ours."""

from __future__ import annotations

__all__ = ["read_flag", "read_number", "with_article"]

_FLAGS = {
    "1": True,
    "0": False,
    "true": True,
    "false": False,
    "yes": True,
    "no": False,
    "on": True,
    "off": False,
}


def read_number(text: str) -> int | float | str | None:
    """Returns the number of a text, None for ``none``, and the text itself if it is neither."""
    text = text.strip()
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_flag(text: str) -> bool | str:
    """Returns the truth of a text such as ``true``, ``1`` or ``on``, and the text itself if it is none."""
    return _FLAGS.get(text.strip().lower(), text)


def with_article(name: str) -> str:
    """Returns the name of a class with ``a`` or ``an`` before it."""
    return f"{'an' if name[:1] in 'AEIOaeio' else 'a'} {name}"
