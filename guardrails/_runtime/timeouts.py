"""Decides which of several timeouts counts. Depends on scopes; must not import guards.

Of the timeouts of one guard, the one nearest to the call counts. All others limit the call from outside: a
`deadline()` block, a request, a call of another guard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from guardrails._runtime.scope import Scope, enforces

__all__ = ["NOT_GIVEN", "budget_of", "given_timeout", "outer_bound", "outer_seconds_left", "set_deadline"]

NOT_GIVEN: Final = -1.0
"""No timeout was given: the guard's default counts."""


def given_timeout(scope: Scope | None, gate: object) -> float | None:
    """The nearest timeout around a scope that was given to a call or compartment of one guard.

    Args:
        scope: The innermost scope, the result of `current`.
        gate: The gate of the outermost guard.

    Returns:
        Seconds left of the call's timeout, or the compartment's timeout for each piece of work in seconds
        (None: unbounded); `NOT_GIVEN` if only the guard's default applies.
    """
    while scope is not None:
        if scope.guard is not None and not scope.closed:
            call: Any = scope  # only calls have a guard
            call_settings = call.call_settings
            if call_settings.root is gate:
                if call.timeout is not None and call.timeout is not call_settings.timeout:
                    left: float = _own_limit(scope) - scope.clock()
                    return max(0.0, left)
                if call_settings.has_own_timeout:
                    given: float | None = call_settings.owner.timeout
                    return given
        scope = scope.outer
    return NOT_GIVEN


def outer_bound(scope: Scope | None, gate: Any) -> tuple[float, Callable[[], float], Any] | None:
    """The soonest deadline around a scope that limits an attached guard's work from outside.

    Timeouts of the attached guard's own calls do not count here, as they only give the time of the work
    inside them. A plain guard's call ends at its deadline, so it limits all work inside it.

    Args:
        scope: The innermost scope, the result of `current`.
        gate: The gate of the outermost guard.

    Returns:
        The deadline, its clock, and the guard whose timeout it is; None without one.
    """
    if scope is None or scope.at is None:
        return None
    # A guard that enforces is not bound by the deadline of one that does not.
    selects = not enforces(scope.owner) and gate.core.enforces
    if not selects and (scope.owner is None or not _is_of(scope.owner, gate)):
        return scope.at, scope.clock, scope.owner
    found: tuple[float, Callable[[], float], Any] | None = None
    soonest = 0.0
    while scope is not None:
        of_gate = scope.guard is not None and _is_of(scope.guard, gate)
        if not of_gate and (enforces(scope.guard) if selects else not scope.closed):
            limit = _own_limit(scope)
            left = None if limit is None else limit - scope.clock()
            if limit is not None and left is not None and (found is None or left < soonest):
                found, soonest = (limit, scope.clock, scope.guard), left
        scope = scope.outer
    return found


def outer_seconds_left(scope: Scope | None, gate: object) -> float | None:
    """Seconds until the deadline of `outer_bound`, negative after it; None without one."""
    found = outer_bound(scope, gate)
    if found is None:
        return None
    at, clock, _ = found
    return at - clock()


def budget_of(call: Any) -> float | None:
    """Seconds that the scopes around a call leave it before it begins; None without a limit."""
    if _replaces(call) or _must_skip_unenforced(call):
        return outer_seconds_left(call.outer, call.call_settings.root)
    return Scope.remaining(call.outer)


def set_deadline(call: Any, now: float) -> None:
    """Sets the deadline of a call that begins inside ``call.outer``."""
    outer, gate = call.outer, call.call_settings.root
    is_default = call.timeout is call.call_settings.timeout and not call.call_settings.has_own_timeout
    if outer is not None and call.timeout is not None and is_default:
        given = given_timeout(outer, gate)
        call.timeout = call.timeout if given == NOT_GIVEN else given
    if call.timeout is not None:
        call.at = now + call.timeout
    if outer is None or not (_replaces(call) or _must_skip_unenforced(call)):
        call.bound_by(outer)
    elif (outside := outer_bound(outer, gate)) is not None:
        call.bound_at(*outside)


def _replaces(call: Any) -> bool:
    """True if a call's timeout replaces those of its guard's calls around it."""
    call_settings = call.call_settings
    return bool(call_settings.attached and (call.timeout is not None or call_settings.has_own_timeout))


def _must_skip_unenforced(call: Any) -> bool:
    """True if a call has to leave out the deadlines around it that are not enforced."""
    return not enforces(call.outer.owner) and bool(call.call_settings.root.core.enforces)


def _is_of(guard: Any, gate: object) -> bool:
    call_settings = guard.call_settings
    return call_settings.attached and call_settings.root is gate


def _own_limit(scope: Scope) -> Any:
    """The deadline of a scope's own timeout, without the enclosing ones."""
    return scope.at if scope.owner is scope.guard else scope.limit
