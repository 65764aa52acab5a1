"""A pytest plugin: the marker ``no_leaks`` fails a test that leaves a slot, a waiter or a connection behind.

pytest loads it where the package is installed, so it must not import guards before a test has.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from guardrails._guard.locked_gate import LockedGate

__all__: list[str] = []

_MARKER = "no_leaks: fails when the test leaves a slot taken, a caller waiting or a connection checked out"


class _Held(NamedTuple):
    """The slots, waiters and connections in use at one guard."""

    calls: int
    connections: int
    waiting: int


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Compares the use of guards before and after a test, without its fixtures."""
    if item.get_closest_marker("no_leaks") is None:
        return (yield)
    before = {gate: _held(gate) for gate in _gates()}
    result = yield
    lines = [line for gate in _gates() for line in _left(gate, before.get(gate, _Held(0, 0, 0)))]
    if lines:
        pytest.fail("the test left something behind\n  " + "\n  ".join(lines), pytrace=False)
    return result


def _gates() -> list[LockedGate]:
    room = sys.modules.get("guardrails._guard.locked_gate")
    return [] if room is None else room.all_gates()


def _held(gate: LockedGate) -> _Held:
    with gate.lock:
        slots, connections = gate.core.bulkhead, len(gate.core.checkouts)
        return _Held(slots.taken - connections, connections, len(slots.queue))


def _left(gate: LockedGate, before: _Held) -> Iterator[str]:
    now = _held(gate)
    for count, one, many in (
        (now.calls - before.calls, "a call that has not ended", "calls that have not ended"),
        (now.connections - before.connections, "a connection checked out", "connections checked out"),
        (now.waiting - before.waiting, "a caller still waiting", "callers still waiting"),
    ):
        if count > 0:
            yield f"guard {gate.name!r}: {one if count == 1 else f'{count} {many}'}"
