"""What a test does with a gate that the product has no need of."""

from __future__ import annotations

__all__ = ["refresh"]


def refresh(gate, now):
    """Brings the gate's state up to ``now``, as the first step of every move does; returns the time used."""
    now = gate._begin_move(now)
    gate.breaker.tick(now)
    gate._collect_transitions()
    return gate._end_move(now)
