"""A pytest plugin: the marker ``no_leaks`` fails a test that leaves something taken behind.

pytest finds it by itself where the package is installed. It imports no guard before somebody has made one.
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
    """What is taken at one guard."""

    calls: int
    connections: int
    waiting: int


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known."""
    config.addinivalue_line("markers", _MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Compares what is taken before a test and after it. What its fixtures hold is theirs."""
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
