"""A child process starts with fresh locks, no calls and no threads. Must not import what it looks after.

Python's at-fork hooks see to it. A server that forks in C without calling them, such as uWSGI without
``--py-call-osafterfork``, is noticed by `check_process`, wherever a lock is taken for more than a quick step,
or a thread is relied on.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["ForkedLock", "check_process", "fork_aware", "in_child", "renew_after_fork"]

_PATIENCE = 1.0
"""Seconds a fork waits for one lock. Steps take microseconds; a thread that died inside one is no reason
not to fork."""


class ForkAware(Protocol):
    """Something with a lock that two processes would otherwise inherit from each other."""

    def pause(self, seconds: float) -> bool:
        """Takes its lock, so that the child inherits no half-made step; False if it could not."""

    def unpause(self) -> None:
        """Gives the lock back."""

    def start_afresh(self) -> None:
        """In the child: makes a new lock and forgets every call, since none of their threads exists."""


_WIPE_ON_FORK = 18
"""Linux's ``MADV_WIPEONFORK``: a child process finds zeros in such memory, whoever has forked it."""


class _Mark:
    """The same for other systems, by the number of the process: a system call for each look."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __getitem__(self, index: int) -> int:
        return self._process == os.getpid()

    def __setitem__(self, index: int, value: int) -> None:
        self._process = os.getpid()


def _new_mark() -> Any:
    try:
        import mmap  # noqa: PLC0415 - a second interpreter of the process may not import it

        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (ImportError, AttributeError, OSError, ValueError):
        return _Mark()
    page[0] = 1
    return page


_mark = _new_mark()
"""Its first byte is 1 in the process whose locks and calls these are, 0 in a child that has yet to notice."""

_in_child_too: list[Callable[[], None]] = []
_notices: dict[int, int] = {}
"""By the number of a process that no hook was run in: the thread that has noticed."""

_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_paused: list[ForkAware] = []


def renew_after_fork(survivor: ForkAware) -> None:
    """Looks after an object in every fork of this process, for as long as it lives."""
    _fork_aware.add(survivor)


def in_child(forget: Callable[[], None]) -> None:
    """Has a function called in every child process, for as long as this one lives."""
    _in_child_too.append(forget)


def check_process() -> None:
    """Starts afresh if this is a child that no hook was run in."""
    if not _mark[0]:
        _notice()


def fork_aware() -> list[ForkAware]:
    """What is looked after now, in no order."""
    return list(_fork_aware)


class ForkedLock:
    """A lock around steps of a few microseconds, which nobody holds in the child of a fork."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finaliser may run inside the step, in the same thread
        renew_after_fork(self)

    def __enter__(self) -> None:
        check_process()
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
    _paused.extend(survivor for survivor in fork_aware() if survivor.pause(_PATIENCE))


def _in_parent() -> None:
    while _paused:
        _paused.pop().unpause()


def _in_child() -> None:
    _in_parent()
    for survivor in fork_aware():
        survivor.start_afresh()
    for forget in _in_child_too:
        forget()
    _mark[0] = 1


def _notice() -> None:
    me, child = threading.get_ident(), os.getpid()
    # One thread starts afresh. The others wait for it: a lock that they took now would be replaced.
    if _notices.setdefault(child, me) == me:
        _in_child()
        return
    until = time.monotonic() + _PATIENCE
    while not _mark[0] and time.monotonic() < until:
        time.sleep(0.0005)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
