"""By when a call that was stopped must be back: what is promised, and room for a loaded machine."""

from __future__ import annotations

__all__ = ["LATE", "ROOM"]

ROOM = 2.0
"""Seconds that a loaded machine may hold a process up. Whatever a test must not wait for takes far longer."""

LATE = 0.25 + 0.1 + ROOM
"""Seconds after its deadline by which a statement must be back: grace, promise, and room."""
