"""What a pool's integration asks the shell before it works: for whom, and how long. Knows no pools."""

from __future__ import annotations

from guardrails._deadline import current
from guardrails._guard import Guard

__all__ = ["innermost", "time_allowed"]


def innermost(guard: Guard) -> Guard:
    """The compartment of ``guard`` whose call this code runs in, or ``guard`` itself."""
    door = guard.passage.doors[-1]
    scope = current()
    while scope is not None:
        inside: Guard | None = scope.guard
        if not scope.closed and inside is not None and inside.passage.doors[-1] is door:
            return inside
        scope = scope.outer
    return guard


def time_allowed(guard: Guard, timeout: float | None = None) -> tuple[float | None, bool]:
    """Seconds a piece of work may take, and whether it is the guard's own timeout that says so.

    Args:
        guard: Whose work it is; a compartment's is its whole guard's, too.
        timeout: What this work asked for instead of the guard's timeout.
    """
    own = guard.timeout if timeout is None else timeout
    scope = current()
    left = None if scope is None else scope.remaining()
    if scope is None or left is None or (own is not None and own <= left):
        return own, True
    owner = scope.owner
    return left, owner is not None and owner.passage.doors[-1] is guard.passage.doors[-1]
