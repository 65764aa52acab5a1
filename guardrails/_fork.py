"""What a fork leaves behind: fresh locks and nobody inside. Knows things with a lock, not what they guard."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["ForkedLock", "survive_fork", "survivors"]

_PATIENCE = 1.0
"""Seconds a fork waits for one lock. Steps take microseconds; a thread that died inside one is no reason
not to fork."""


class Survivor(Protocol):
    """Something with a lock that two processes would otherwise inherit from each other."""

    def pause(self, seconds: float) -> bool:
        """Takes its lock, so that the child inherits no half-made step; False if it could not."""

    def unpause(self) -> None:
        """Gives the lock back."""

    def start_afresh(self) -> None:
        """In the child: makes a new lock and forgets every call, since none of their threads exists."""


_survivors: weakref.WeakSet[Survivor] = weakref.WeakSet()
_paused: list[Survivor] = []


def survive_fork(survivor: Survivor) -> None:
    """Looks after an object in every fork of this process, for as long as it lives."""
    _survivors.add(survivor)


def survivors() -> list[Survivor]:
    """What is looked after now, in no order."""
    return list(_survivors)


class ForkedLock:
    """A lock around steps of a few microseconds, which nobody holds in the child of a fork."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finaliser may run inside the step, in the same thread
        survive_fork(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def pause(self, seconds: float) -> bool:
        """See Survivor."""
        return self._lock.acquire(timeout=seconds)

    def unpause(self) -> None:
        """See Survivor."""
        self._lock.release()

    def start_afresh(self) -> None:
        """See Survivor."""
        self._lock = threading.RLock()


def _before() -> None:
    _paused.extend(survivor for survivor in survivors() if survivor.pause(_PATIENCE))


def _in_parent() -> None:
    while _paused:
        _paused.pop().unpause()


def _in_child() -> None:
    _in_parent()
    for survivor in survivors():
        survivor.start_afresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
