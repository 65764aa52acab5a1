"""Checks in a child that C code has forked, so that none of Python's hooks ran in it.

Where another thread waits for the interpreter's lock at the moment of such a fork, the C library leaves the
child a condition variable on which it hangs, with or without this package. The guard's own thread wakes now
and then, so a child that hangs is tried again: a fault of the package hangs each time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from guardrails import Guard
from guardrails._runtime import fork


def in_child(check, tries=5):
    """Runs a check in such a child. It fails the process where the check is not true, or never ends."""
    pid = ctypes.PyDLL(None).fork()  # keeps the interpreter lock, as a fork in C does
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if ended == -signal.SIGALRM and tries > 1:
        in_child(check, tries - 1)
    else:
        assert ended == 0, ended


def no_calls():
    """The child notices the fork at its first step, and starts without calls."""
    guard = Guard("db", max_concurrent_calls=1, max_wait_duration=0, timeout=None)

    def check():
        was_noticed = bool(fork._mark[0])
        guard.reset()
        return (was_noticed, fork._mark[0], guard.snapshot().in_use) == (False, 1, 0)

    with guard.call():
        in_child(check)
        assert guard.snapshot().in_use == 1


def one_reset():
    """One thread of the child resets its locks. The others wait: a lock taken meanwhile would be replaced."""

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

    in_child(check)


if __name__ == "__main__":
    {"no_calls": no_calls, "one_reset": one_reset}[sys.argv[1]]()
    print("fine")
