"""The outcomes of calls: what each says about the dependency. Depends on nothing."""

from __future__ import annotations

import enum

__all__ = ["Outcome"]


class Outcome(enum.IntEnum):
    """The meaning of a finished call. Being *slow* is a separate mark on any of them."""

    SUCCESS = 0
    """The dependency answered: a result, or an error that proves it is alive."""
    FAILURE = 1
    """The dependency's fault, or our own deadline."""
    ABANDONED = 2
    """The caller left, or somebody else has already counted it: no evidence either way."""
    NEUTRAL = 3
    """It worked, and proves nothing: a COMMIT, a ping, a login. Counted as succeeded; no evidence."""
