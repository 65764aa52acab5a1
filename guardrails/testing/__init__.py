"""Helpers for tests of guarded code; imports nothing until one is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_ON_USE[name]), name)
    return value
