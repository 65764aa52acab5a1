"""Computes how long a command may wait on the server on purpose.

Depends on the arguments of commands; must not import connections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["BLOCKING_COMMANDS", "NO_EVIDENCE", "block_time", "total_block_time"]

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
"""Reads the timeout of each command from its arguments. In all of them 0 means forever."""

_KNOWN: dict[str | bytes, Callable[[_Args], float | None]] = {
    spelling: where
    for name, where in _WAITS.items()
    for spelling in (name, name.lower(), name.encode(), name.lower().encode())
}

BLOCKING_COMMANDS = frozenset(_KNOWN)
"""First words of the blocking commands, in the spellings that callers use."""

NO_EVIDENCE = frozenset(
    {
        *("ASKING", "AUTH", "CLIENT", "CLUSTER SLOTS", "COMMAND", "DISCARD", "HELLO", "READONLY", "SELECT"),
        *("UNWATCH", "WATCH"),
    }
)
"""Commands that a server still answers while all others fail: their success is no evidence."""


def block_time(args: _Args) -> float | None:
    """Returns the seconds that a command may block on the server; None if it does not block."""
    where = _KNOWN.get(args[0])
    if where is None:
        return None
    try:
        seconds = where(args)
    except (ValueError, TypeError, IndexError):
        return None  # the server answers with an error
    return math.inf if seconds == 0 else seconds


def total_block_time(commands: Iterable[_Args]) -> float | None:
    """Returns the sum for a pipeline; None for a transaction, because nothing blocks inside MULTI."""
    total = None
    for args in commands:
        if args[0] == "MULTI":
            return None
        seconds = block_time(args)
        if seconds is not None:
            total = (total or 0.0) + seconds
    return total
