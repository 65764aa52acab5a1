"""What the interpreter says about its lock. Depends on nothing of ours."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["has_gil", "threads_take_turns"]


def has_gil() -> bool:
    """True if the interpreter lock is on, so that other threads stand still while this one looks at them."""
    enabled: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)
    return enabled is None or enabled()


def threads_take_turns() -> bool:
    """True under an interpreter lock that changes hands at known places only; see `_guard/fast_path.py`.

    False on every free-threaded build: there a dictionary's own lock may hand the interpreter's on.
    """
    free_threaded = "t" in getattr(sys, "abiflags", "") or not has_gil()
    return sys.implementation.name == "cpython" and not free_threaded
