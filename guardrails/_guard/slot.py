"""A call that needs a slot and nothing else: no deadline, no rules, no scope. Knows gates, not callers.

What a bulkhead without a circuit does all day. Where more is asked for, the call takes the way of all
others (`_call`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from guardrails._core.outcome import Outcome
from guardrails._guard.call_settings import CallSettings
from guardrails._guard.locked_gate import LockedGate
from guardrails._runtime.scope import ambient
from guardrails._util.callables import FINISHED, check_finished

__all__ = ["run_in_slot"]

_ALWAYS = math.inf
_get_ambient = ambient.get


# ``Gate.enter`` and ``Gate.leave`` written out once more around the call, for a gate that judges nothing;
# the tests hold it to them. As in `_call`, the lock is taken by hand, and nothing is called from the first
# number changed to the last. Nothing can be overdue here, so the way out needs no clock.
def run_in_slot(  # noqa: C901, PLR0912 - written out
    call_settings: CallSettings, otherwise: Callable[..., Any], fn: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    """Calls ``fn`` in a slot of the guard.

    Args:
        call_settings: The guard's.
        otherwise: The guard's method that calls ``fn`` where a slot is not enough: somebody waits for one,
            or there is a request around that wants to know, or a deadline.
        fn: What to call.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """
    gate, around, ticket = call_settings.slot_gate, _get_ambient(), 0
    while around is not None and around.closed:
        around = around.outer
    if gate is None or around is not None:
        return otherwise(call_settings.owner, fn, *args, **kwargs)
    core, lock = gate.core, gate.lock
    bulkhead, breaker = core.bulkhead, core.breaker
    try:
        lock.acquire()
        now, last = gate.clock(), core.last
        if core.fast_leave_until == _ALWAYS and bulkhead.taken < bulkhead.limit:
            if now > last:
                core.last = last = now
            ticket = breaker.issued = breaker.issued + 1
            breaker.in_flight[ticket] = last
            core.admitted += 1
            bulkhead.taken += 1
        lock.release()
        if gate.postponed:
            gate.catch_up()
    except BaseException as error:
        gate.release_lock()
        _leave(call_settings, gate, ticket, error)
        raise
    if not ticket:
        return otherwise(call_settings.owner, fn, *args, **kwargs)
    try:
        result = fn(*args, **kwargs)
        if type(result) not in FINISHED:
            check_finished(fn, result, "await run_async(), or decorate an async def")
    except BaseException as error:
        _leave(call_settings, gate, ticket, error)
        raise
    try:
        lock.acquire()
        if core.fast_leave_until == _ALWAYS and ticket > breaker.generation and ticket in breaker.in_flight:
            del breaker.in_flight[ticket]
            breaker.unwritten += 1
            bulkhead.taken -= 1
            ticket = 0
        lock.release()
        if gate.postponed:
            gate.catch_up()
    except BaseException as error:
        gate.release_lock()
        _leave(call_settings, gate, ticket, error)
        raise
    if ticket:
        _leave(call_settings, gate, ticket, None)
    return result


def _leave(call_settings: CallSettings, gate: LockedGate, ticket: int, error: BaseException | None) -> None:
    outcome = Outcome.ABANDONED
    try:
        outcome = Outcome.SUCCESS if error is None else call_settings.classify(error)
        gate.leave(ticket, outcome)
    except BaseException:  # Ctrl-C on the way: once more, as nothing is given back twice
        gate.leave(ticket, outcome)
        raise
