"""Our own parts, and the floor under every decorator."""

from __future__ import annotations

import functools
from contextvars import copy_context

from core_bench.contender import (
    AN_HOUR,
    NEVER,
    OURS,
    SLOTS,
    Contender,
    all_ways,
    decorator_only,
    failures_to_open,
)
from guardrails import BreakerPolicy, Bulkhead, CircuitBreaker, Guard, guarded


def empty_wrapper(_end):
    """What any decorator costs that does nothing at all."""

    def decorate(fn):
        if fn.__name__.endswith("_async"):

            @functools.wraps(fn)
            async def wrapper_async(*args, **kwargs):
                return await fn(*args, **kwargs)

            return wrapper_async

        @functools.wraps(fn)
        def wrapper(*args, **kwargs):
            return fn(*args, **kwargs)

        return wrapper

    return decorate


POLICIES = {
    "closed": BreakerPolicy(),
    "raising": BreakerPolicy(minimum_number_of_calls=NEVER),
    "rejected": BreakerPolicy(wait_duration_in_open_state=AN_HOUR, max_wait_duration_in_open_state=AN_HOUR),
}
"""The default policy, but that calls end as they should. One for all guards, as the default is."""


def whole_guard(end):
    """Circuit, slots, in-flight ages and a timeout: what ``Guard(name, max_concurrent_calls=...)`` is."""
    return Guard("bench", max_concurrent_calls=SLOTS, breaker=POLICIES[end])


def guard_without_timeout(end):
    """The same with ``timeout=None``."""
    return Guard("bench", max_concurrent_calls=SLOTS, timeout=None, breaker=POLICIES[end])


def our_bulkhead(end):
    """Slots alone; it refuses because its only one is taken, by a call that never ends."""
    if end != "rejected":
        return Bulkhead("bench", SLOTS)
    bulkhead = Bulkhead("bench", 1)
    copy_context().run(bulkhead.call().__enter__)  # its scope must not be around the calls that are timed
    return bulkhead


def guard_ways(guard):
    """All ways into a guard."""
    return all_ways(guarded(guard), guard.run, guard.run_async, guard.call)


def our_circuit_breaker(end):
    """The pybreaker drop-in."""
    # The failure that opens it is to come out as it is, as from all the others but pybreaker.
    return CircuitBreaker(
        fail_max=failures_to_open(end), reset_timeout=AN_HOUR, name="bench", throw_new_error_on_trip=False
    )


def circuit_breaker_ways(breaker):
    """All ways into the drop-in."""
    return all_ways(breaker, breaker.call, breaker.acall, breaker.calling)


OWN = (
    Contender("an empty wrapper", None, empty_wrapper, decorator_only, None),
    Contender("Guard", OURS, whole_guard, guard_ways, "guardrails:CircuitOpenError"),
    Contender("Guard, no timeout", OURS, guard_without_timeout, guard_ways, "guardrails:CircuitOpenError"),
    Contender(
        "CircuitBreaker",
        OURS,
        our_circuit_breaker,
        circuit_breaker_ways,
        "guardrails:CircuitOpenError",
    ),
    Contender("Bulkhead", OURS, our_bulkhead, guard_ways, "guardrails:BulkheadFullError"),
)
