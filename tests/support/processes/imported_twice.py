"""The package reloaded, and a second copy of it beside the first: each has its own, and both work."""

from __future__ import annotations

import importlib
import os
import sys
import warnings

import guardrails


def second_copy():
    """As where somebody clears ``sys.modules``, or two plug-ins each bring the package along."""
    for name in [name for name in sys.modules if name.split(".")[0] == "guardrails"]:
        del sys.modules[name]
    return importlib.import_module("guardrails")


def works(copy, guard):
    """A call in each flavour of end, and a refusal that is an error of that copy."""
    guard.reset()
    with copy.deadline(60), guard.call():
        pass
    guard.force_open()
    try:
        guard.run(int)
    except copy.CircuitOpenError:
        return guard.snapshot().in_use == 0
    return False


def main():
    """Guards from before a reload go on, those of two copies do not meet, a fork knows them all."""
    before = guardrails.Guard("db", max_concurrent_calls=1)
    old_error = guardrails.RejectedError
    importlib.reload(guardrails)
    assert guardrails.RejectedError is old_error
    assert works(guardrails, before)
    other = second_copy()
    assert other is not guardrails
    guards = {guardrails: before, other: other.Guard("db", max_concurrent_calls=1)}
    for copy, guard in guards.items():
        assert works(copy, guard)
        guard.reset()
    with guardrails.deadline(60), before.call():
        assert other.remaining() is None
        with guards[other].call():
            with warnings.catch_warnings(action="ignore"):  # from 3.12 on, of the library's threads
                pid = os.fork()
            if pid == 0:
                os._exit(0 if all(works(copy, guard) for copy, guard in guards.items()) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [guard.snapshot().in_use for guard in guards.values()] == [0, 0]


if __name__ == "__main__":
    main()
    print("fine")
