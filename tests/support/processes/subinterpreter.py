"""A second interpreter in the process: it has guards of its own, and none of the first one's."""

from __future__ import annotations

import os
import sys

try:
    import _interpreters as interpreters
except ImportError:  # before Python 3.13
    import _xxsubinterpreters as interpreters

from guardrails import Guard, deadline, remaining

STORY = """
import asyncio, os
from guardrails import CircuitOpenError, Guard, deadline, remaining

guard = Guard("db", max_concurrent_calls=2)
with deadline(60), guard.call():
    inside = guard.snapshot().in_use, remaining() is not None
asyncio.run(guard.run_async(asyncio.sleep, 0))
guard.force_open()
try:
    guard.run(int)
except CircuitOpenError as refusal:
    told = f"{inside} {guard.snapshot().succeeded} {refusal.reason} {remaining()}"
os.write({writing}, told.encode())
"""


def tell(story):
    """Runs a story in an interpreter of its own; returns what it wrote."""
    reading, writing = os.pipe()
    other = interpreters.create()
    run = getattr(interpreters, "exec", None) or interpreters.run_string
    here = f"import sys; sys.path[:] = {sys.path!r}\n"
    failed = run(other, here + story.replace("{writing}", str(writing)))
    assert failed is None, failed
    os.close(writing)
    told = os.read(reading, 1000).decode()
    os.close(reading)
    return other, told


def main():
    """The first interpreter is inside a call and under a deadline meanwhile; the second knows of neither."""
    guard = Guard("db", max_concurrent_calls=2)
    with deadline(60), guard.call():
        other, told = tell(STORY)
        assert told == "(1, True) 2 circuit_open None", told
        assert remaining() > 0
        assert (guard.state, guard.snapshot().in_use) == ("closed", 1)
    if sys.version_info[:2] != (3, 12):  # 3.12.1 crashes where an interpreter ends that has imported asyncio
        interpreters.destroy(other)
        guard.run(int)
    print("fine", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
