"""The outcomes of calls. Depends on nothing."""

from __future__ import annotations

import enum

__all__ = ["Outcome"]


class Outcome(enum.IntEnum):
    """The evidence of a finished call about its dependency. *Slow* is a separate mark on any outcome."""

    SUCCESS = 0
    """The dependency answered, with a result or with an error that proves that it works."""
    FAILURE = 1
    """The dependency failed, or the guard's own deadline passed."""
    ABANDONED = 2
    """The caller gave up, or another guard has counted the call already: no evidence."""
    NEUTRAL = 3
    """It worked and proves little, as a COMMIT, a ping or a login: counted as succeeded, no evidence."""
