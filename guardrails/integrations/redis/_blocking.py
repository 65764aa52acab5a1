"""Commands that wait on the server on purpose, and for how long. Knows commands, not connections."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["BLOCKING", "PROVES_NOTHING", "patience", "patience_of_all"]

_Args = Sequence[Any]


def _last(args: _Args) -> float:
    return float(args[-1])


def _first(args: _Args) -> float:
    return float(args[1])


def _last_milliseconds(args: _Args) -> float:
    return float(args[-1]) / 1000


def _block_option(args: _Args) -> float | None:
    for word, value in pairwise(args):
        if word in _BLOCK:
            return float(value) / 1000
        if word in _STREAMS:
            break
    return None


_BLOCK = ("BLOCK", b"BLOCK", "block", b"block")
_STREAMS = ("STREAMS", b"STREAMS", "streams", b"streams")

_WAITS: dict[str, Callable[[_Args], float | None]] = {
    "BLMOVE": _last,
    "BLMPOP": _first,
    "BLPOP": _last,
    "BRPOP": _last,
    "BRPOPLPUSH": _last,
    "BZMPOP": _first,
    "BZPOPMAX": _last,
    "BZPOPMIN": _last,
    "WAIT": _last_milliseconds,
    "WAITAOF": _last_milliseconds,
    "XREAD": _block_option,
    "XREADGROUP": _block_option,
}
"""Where each command carries its timeout. In all of them 0 is for ever."""

_KNOWN: dict[str | bytes, Callable[[_Args], float | None]] = {
    spelling: where
    for name, where in _WAITS.items()
    for spelling in (name, name.lower(), name.encode(), name.lower().encode())
}

BLOCKING = frozenset(_KNOWN)

PROVES_NOTHING = frozenset({"AUTH", "CLIENT", "DISCARD", "HELLO", "READONLY", "SELECT", "UNWATCH", "WATCH"})
"""Commands that a server answers while it fails at every other: their success is no evidence."""
"""The first words of all of them, as they may be spelt."""


def patience(args: _Args) -> float | None:
    """Seconds a command may wait on the server by its own wish; None if it does not wait."""
    where = _KNOWN.get(args[0])
    if where is None:
        return None
    try:
        seconds = where(args)
    except (ValueError, TypeError, IndexError):
        return None  # the server will say what is wrong with it
    return math.inf if seconds == 0 else seconds


def patience_of_all(commands: Iterable[_Args]) -> float | None:
    """The same for a pipeline. Inside MULTI nothing waits, so a transaction has none."""
    total = None
    for args in commands:
        if args[0] == "MULTI":
            return None
        seconds = patience(args)
        if seconds is not None:
            total = (total or 0.0) + seconds
    return total
