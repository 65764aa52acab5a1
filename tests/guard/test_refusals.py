"""A service under overload refuses more than it serves: a refusal must leave nothing behind."""

from __future__ import annotations

import gc
import weakref

import pytest

from guardrails import Bulkhead, CircuitBreaker, Guard, RejectedError


def shut_guard():
    """A guard that refuses on the slow path, as it is forced open."""
    guard = Guard("db", max_concurrent_calls=1)
    guard.force_open()
    return guard.run


def open_guard():
    """A guard that refuses the fast path."""
    guard = Guard("db", max_concurrent_calls=1)
    guard._gate.step(guard._gate.core.set_state, "open")
    return guard.run


def shut_bulkhead():
    """A bulkhead that refuses."""
    bulkhead = Bulkhead("db", 1)
    bulkhead.force_open()
    return bulkhead.run


def open_breaker():
    """The drop-in for pybreaker, open."""
    breaker = CircuitBreaker()
    breaker.open()
    return breaker.call


@pytest.mark.parametrize("make", [shut_guard, open_guard, shut_bulkhead, open_breaker])
def test_a_handled_refusal_is_removed_from_the_request(make):
    """Without the collector's help: no frame that its traceback keeps may keep the error in turn."""
    run = make()
    gc.disable()
    try:
        try:
            run(int)
        except RejectedError as error:
            seen = weakref.ref(error)
        assert seen() is None
    finally:
        gc.enable()
