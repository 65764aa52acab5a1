"""Every public error survives what carries errors from one process to another, with its attributes."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guardrails
from guardrails.errors import (
    CallAbandonedError,
    CallTimeoutError,
    ConfigurationError,
    ConnectionRevokedError,
    GuardrailsError,
    Reason,
    RejectedError,
    WarmUpError,
)

CLASSES = sorted(
    {value for value in vars(guardrails.errors).values() if isinstance(value, type)}
    & {GuardrailsError, *GuardrailsError.__subclasses__()}
    | {getattr(guardrails, name) for name in guardrails.__all__ if name.endswith("Error")},
    key=lambda cls: cls.__name__,
)
SECONDS = st.floats(0, 1e9, allow_nan=False)
ATTRIBUTES = (
    *(
        "guard",
        "compartment",
        "reason",
        "retry_after",
        "timeout",
        "seconds",
        "where",
        "route",
        "idle",
        "wanted",
    ),
    *("args", "__notes__"),
)


def arguments(cls):
    """What a class of errors is made with."""
    if issubclass(cls, RejectedError):
        reasons = st.sampled_from(typing.get_args(Reason))
        return st.tuples(st.text(), reasons, st.none() | SECONDS, st.none() | st.text())
    if issubclass(cls, CallTimeoutError):
        return st.tuples(st.text(), SECONDS, st.none() | st.text())
    if issubclass(cls, ConnectionRevokedError):
        return st.tuples(st.text(), SECONDS, st.lists(st.text()), st.none() | st.text())
    if issubclass(cls, WarmUpError):
        return st.tuples(st.text(), st.integers(0, 9), st.integers(0, 9))
    return st.tuples(st.text())


errors = st.sampled_from(CLASSES).flatmap(lambda cls: arguments(cls).map(lambda args: cls(*args)))


def seen(error):
    """Everything that a handler can read of an error."""
    return type(error), str(error), repr(error), {name: getattr(error, name, None) for name in ATTRIBUTES}


def test_every_public_error_is_tried():
    """The list above has the whole tree of `guardrails.errors`."""
    assert {cls.__name__ for cls in CLASSES} == set(guardrails.errors.__all__)


@given(errors)
def test_an_error_is_rebuilt_from_its_args(error):
    """As Celery does it with what its JSON result backend has stored, too."""
    assert seen(type(error)(*error.args)) == seen(error)
    assert seen(type(error)(*json.loads(json.dumps(error.args)))) == seen(error)


@given(errors, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_an_error_is_pickled_and_copied_with_its_notes(error, protocol):
    """By every protocol of pickle, and by both functions of copy."""
    error.add_note("a note")
    for rebuilt in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert seen(rebuilt) == seen(error)


@given(errors)
def test_celery_hands_an_error_on_as_it_is(error):
    """Its serialiser neither replaces the class by a base nor wraps it."""
    serialization = pytest.importorskip("celery.utils.serialization")
    assert seen(serialization.get_pickleable_exception(error)) == seen(error)
    wrapped = serialization.UnpickleableExceptionWrapper.from_exception(error)
    assert list(wrapped.exc_args) == list(error.args)


def fail_with(cls, args):
    raise cls(*args)


def test_an_error_comes_back_from_a_multiprocessing_pool():
    """From a real worker process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        for cls in CLASSES:
            args = ("db", "circuit_open", 1.5) if issubclass(cls, RejectedError) else ("db", 1.5)
            args = ("db", 2, 4) if cls is WarmUpError else args
            args = ("settings",) if cls in {ConfigurationError, GuardrailsError} else args
            with pytest.raises(cls) as caught:
                pool.apply(fail_with, (cls, args))
            assert seen(caught.value) == seen(cls(*args))
        pool.close()
        pool.join()


@given(st.sampled_from([cls for cls in CLASSES if issubclass(cls, CallTimeoutError)]))
def test_a_timeout_is_no_system_error(cls):
    """It is a TimeoutError, and so an OSError, whose own fields say nothing."""
    error = cls("db", 1.5)
    assert (error.errno, error.strerror, error.filename) == (None, None, None)
    reason = "the client of the request is gone" if cls is CallAbandonedError else "it was given 1.5 s"
    assert str(error) == f"'db' stopped the call: {reason}"
