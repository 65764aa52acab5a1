"""What tests do to guards, as verbs."""

from __future__ import annotations

import asyncio

import pytest

from guardrails import BreakerPolicy, RejectedError


class Boom(Exception):
    """The dependency's fault."""


class DatabaseError(Exception):
    """The errors of a driver, as PEP 249 names them."""


class OperationalError(DatabaseError):
    """About the database."""


class IntegrityError(DatabaseError):
    """About the data."""


class ProgrammingError(DatabaseError):
    """About the statement."""


def boom():
    """Fails as a dependency does."""
    raise Boom


def raised_from(error, cause):
    """An error as ``raise error from cause`` leaves it."""
    error.__cause__ = cause
    return error


def raised_while_handling(error, context):
    """An error as it is when it was raised in the handler of another."""
    error.__context__ = context
    return error


def give_up():
    """Ends without evidence, as when the caller goes away."""
    raise asyncio.CancelledError


def succeed(run, guard, times=1):
    """Makes calls that return."""
    for _ in range(times):
        assert run(guard, lambda: "fine") == "fine"


def fail(run, guard, times=1):
    """Makes calls that fail."""
    for _ in range(times):
        with pytest.raises(Boom):
            run(guard, boom)


def abandon(run, guard, times=1):
    """Makes calls whose caller goes away."""
    for _ in range(times):
        with pytest.raises(asyncio.CancelledError):
            run(guard, give_up)


def play(run, guard, story):
    """Makes one call for each letter: S succeeds, F fails, X is abandoned; spaces are for the reader."""
    verbs = {"S": succeed, "F": fail, "X": abandon}
    for letter in story.replace(" ", ""):
        verbs[letter](run, guard)


def be_refused(run, guard, reason="circuit_open"):
    """Makes a call that must be refused without the function being called; returns the error."""
    called = []
    with pytest.raises(RejectedError) as refusal:
        run(guard, called.append, 1)
    assert not called
    assert refusal.value.reason == reason
    return refusal.value


def trip(run, guard, clock=None, wait=None):
    """Opens a circuit made by ``tripping``, and lets it wait until probes are due."""
    fail(run, guard)
    assert guard.state == "open"
    if wait is not None:
        clock.advance(wait)


def tripping(**options):
    """A policy by which the first failure opens the circuit for 5 s."""
    settings = {
        "sliding_window_type": "count",
        "sliding_window_size": 1,
        "minimum_number_of_calls": 1,
        "wait_duration_in_open_state": 5,
        "open_jitter": 0,
        "permitted_calls_in_half_open_state": 4,
    }
    return BreakerPolicy(**(settings | options))


def counting(size, **options):
    """A policy that judges the last ``size`` calls."""
    return BreakerPolicy(sliding_window_type="count", sliding_window_size=size, open_jitter=0, **options)
