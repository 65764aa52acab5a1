"""Gives a forked child process fresh locks and no calls. Depends on nothing; must not import its users.

Python's at-fork hooks do this. A server that forks in C without running the hooks, such as uWSGI without
``--py-call-osafterfork``, is noticed by `check_process`. It is called where a lock is taken for more than a
few instructions, and where a thread is needed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from guardrails._util.weak_registry import WeakRegistry

__all__ = ["ForkedLock", "LockOwner", "check_process", "fork_aware", "in_child", "renew_after_fork"]

_log = logging.getLogger("guardrails")

_LOCK_TIMEOUT = 1.0
"""Seconds for which a fork waits for one lock. A lock is held for microseconds; one that is held longer
belongs to a thread that died and must not prevent the fork."""


class ForkAware(Protocol):
    """An object whose lock and calls a child process must not inherit."""

    def pause(self, seconds: float) -> bool:
        """Before the fork: takes the lock, so that no step is half done; False if it was not free in time."""

    def unpause(self) -> None:
        """After the fork: releases the lock."""

    def reset_in_child(self) -> None:
        """In the child: makes a new lock and drops every call, as their threads do not exist there."""


_WIPE_ON_FORK = 18
"""Linux's ``MADV_WIPEONFORK``: the kernel fills such memory with zeros in a child process."""


class _Mark:
    """A mark for other systems. It compares process numbers, at the cost of a system call for each read."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __getitem__(self, index: int) -> int:
        return self._process == os.getpid()

    def __setitem__(self, index: int, value: int) -> None:
        self._process = os.getpid()


def _new_mark() -> Any:
    try:
        import mmap  # noqa: PLC0415 - a subinterpreter may not import it

        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (ImportError, AttributeError, OSError, ValueError):
        return _Mark()
    page[0] = 1
    return page


_mark = _new_mark()
"""Its first byte is 1 in the process that made the locks and calls, and 0 in a child until it is noticed."""

_child_callbacks: list[Callable[[], None]] = []
_notices: dict[int, int] = {}
"""The thread that resets the locks of a child in which no hook was run, by process number."""

_fork_aware: WeakRegistry[ForkAware] = WeakRegistry()
_paused: list[ForkAware] = []


def renew_after_fork(obj: ForkAware) -> None:
    """Handles an object in every fork of this process for as long as it lives."""
    _fork_aware.add(obj)


def in_child(callback: Callable[[], None]) -> None:
    """Registers a function that is called in every child process."""
    _child_callbacks.append(callback)


def check_process() -> None:
    """Resets locks and calls if this is a child process in which no hook was run."""
    if not _mark[0]:
        _notice()


def fork_aware() -> list[ForkAware]:
    """The registered objects that are alive, in no order."""
    return _fork_aware.living()


class LockOwner:
    """Base of an object with one lock: a `ForkAware` that takes the lock before a fork and renews it after.

    Attributes:
        lock: Reentrant, as a finaliser may run while its own thread holds the lock.
    """

    __slots__ = ()

    lock: Any

    def pause(self, seconds: float) -> bool:
        """See ForkAware."""
        return bool(self.lock.acquire(timeout=seconds))

    def unpause(self) -> None:
        """See ForkAware."""
        self.lock.release()

    def reset_in_child(self) -> None:
        """See ForkAware."""
        self.lock = threading.RLock()


class ForkedLock(LockOwner):
    """A lock that is held for a few microseconds at a time, and that is free in a child process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        renew_after_fork(self)

    def __enter__(self) -> None:
        check_process()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _before() -> None:
    _paused.extend(each for each in fork_aware() if each.pause(_LOCK_TIMEOUT))


def _in_parent() -> None:
    while _paused:
        _paused.pop().unpause()


def _in_child() -> None:
    _in_parent()
    for step in [*(each.reset_in_child for each in fork_aware()), *_child_callbacks]:
        try:
            step()
        except Exception:  # noqa: BLE001 - logged; else each later call of any guard would repeat and raise it
            _log.exception("a part of the library could not be reset in a child process")
    _mark[0] = 1


def _notice() -> None:
    me, child = threading.get_ident(), os.getpid()
    # One thread resets everything. The others wait: a lock that they took now would be replaced.
    if _notices.setdefault(child, me) == me:
        _in_child()
        return
    until = time.monotonic() + _LOCK_TIMEOUT
    while not _mark[0] and time.monotonic() < until:
        time.sleep(0.0005)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
