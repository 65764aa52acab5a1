"""Children of forks that run none of Python's hooks, and systems without a mark that a fork clears."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import threading
import time

import pytest

from guardrails import Guard
from guardrails._runtime import fork


def in_child_without_hooks(check):
    """Runs a check in a child process that C code has forked; returns its exit status."""
    pid = ctypes.PyDLL(None).fork()  # keeps the interpreter lock, as a fork in C does
    if pid == 0:
        signal.alarm(20)
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs the C library of Linux")


@on_linux
def test_a_child_without_hooks_starts_without_calls():
    """It notices the fork at its first step."""
    guard = Guard("db", max_concurrent_calls=1, max_wait_duration=0, timeout=None)
    guard.disable()

    def check():
        was_noticed = bool(fork._mark[0])
        guard.reset()
        return (was_noticed, fork._mark[0], guard.snapshot().in_use) == (False, 1, 0)

    with guard.call():
        assert in_child_without_hooks(check) == 0
        assert guard.snapshot().in_use == 1


@on_linux
def test_one_thread_of_a_child_without_hooks_resets_it_and_the_others_wait():
    """A lock that another thread took meanwhile would be replaced."""

    def check():
        resets, reset = [], fork._in_child

        def slow_reset():
            resets.append(threading.get_ident())
            time.sleep(0.05)
            reset()

        fork._in_child = slow_reset
        seen = []
        threads = [
            threading.Thread(target=lambda: (fork.check_process(), seen.append(fork._mark[0])))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        return (len(resets), seen) == (1, [1, 1, 1])

    assert in_child_without_hooks(check) == 0


@pytest.mark.parametrize("missing", ["the flag", "the call"])
def test_process_numbers_mark_a_child_where_memory_cannot(monkeypatch, missing):
    """On other systems than Linux; the mark is set again once the child has been reset."""
    if missing == "the flag":
        monkeypatch.delattr(mmap, "MAP_ANONYMOUS")
    else:
        monkeypatch.setattr(fork, "_WIPE_ON_FORK", -1)
    mark, parent = fork._new_mark(), os.getpid()
    assert isinstance(mark, fork._Mark)
    assert mark[0]
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert not mark[0]
    mark[0] = 1
    assert mark[0]
