"""Connects to a server that answers nothing: how many threads and sockets they may keep, and for how long."""

from __future__ import annotations

import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from guardrails import CallTimeoutError, RejectedError
from support.polling import poll
from support.sql_lab import drivers, lab_with

lab = lab_with(drivers(is_async=False))

SLOTS, SPARE = 3, 2


def opening():
    """The threads that are opening a connection."""
    return [thread for thread in threading.enumerate() if thread.name == "guardrails-connect"]


def test_given_up_connects_are_bounded_and_end_by_themselves(lab):
    """No more than the slots and two, however many are tried; and the engine works again after the thaw."""
    guard = lab.protect(pool_size=SLOTS, max_overflow=0, guard={"timeout": 0.2, "breaker": None})
    most = 0
    with lab.frozen():
        until = time.monotonic() + 4
        while time.monotonic() < until:
            ends = lab.all([lambda: lab.query("select 1")] * SLOTS)
            assert all(isinstance(end, CallTimeoutError | RejectedError | SQLAlchemyError) for end in ends), (
                ends
            )
            most = max(most, len(opening()))
        assert 0 < most <= SLOTS + SPARE
    poll(lambda: not opening(), "the given-up connects have ended", 10)
    assert lab.query("select 1") == 1
    assert guard.snapshot().in_use == 0
