"""Waiting for another thread, process or server; a test that waits in vain fails and does not hang."""

from __future__ import annotations

import time


def poll(condition, what, seconds=20.0, every=0.01):
    """Waits until a server shows a state; says ``what`` was awaited if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so within {seconds} s: {what}"
        time.sleep(every)


def wait_until(true, seconds=20.0):
    """Waits until another thread or process has done something."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)
