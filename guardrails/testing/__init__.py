"""Helpers for tests of guarded code. Each is imported when its name is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails._util.lazy import on_use

if TYPE_CHECKING:
    from guardrails.testing.circuits import open_circuit
    from guardrails.testing.clock import FakeClock
    from guardrails.testing.proxy import FaultProxy

__all__ = ["FakeClock", "FaultProxy", "open_circuit"]

_ON_USE = {
    "FakeClock": "guardrails.testing.clock",
    "FaultProxy": "guardrails.testing.proxy",
    "open_circuit": "guardrails.testing.circuits",
}

__getattr__ = on_use(__name__, _ON_USE)
