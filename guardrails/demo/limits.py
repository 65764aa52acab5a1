"""Limits of the demo's own process that would disturb its figures. Must not know the run."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["allow_many_sockets", "quiet_collector"]

_OPEN_FILES = 16_384


def allow_many_sockets() -> None:
    """Raises the soft limit on open files."""
    # Clients that wait 2 s at 400 tries a second hold 800 sockets; the usual soft limit is 1024 for all.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Makes garbage collections rare, because their pauses would be measured as the twins' latency."""
    usual = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 1_000)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()
