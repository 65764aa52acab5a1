"""The settings of a circuit: the range of a window's size depends on its kind."""

from __future__ import annotations

import pytest

from guardrails import BreakerPolicy, ConfigurationError


@pytest.mark.parametrize(
    ("kind", "size"), [("count", 1), ("count", 10**7), ("time", 0.001), ("time", 2.5), ("time", 10**9)]
)
def test_a_window_may_have_any_size_of_its_range(kind, size):
    policy = BreakerPolicy(sliding_window_type=kind, sliding_window_size=size)
    assert policy.sliding_window_size == size


@pytest.mark.parametrize(
    ("kind", "size", "allowed"),
    [
        ("count", 0, "a whole number from 1 to 10000000"),
        ("count", 2.5, "a whole number from 1 to 10000000"),
        ("count", 10**7 + 1, "a whole number from 1 to 10000000"),
        ("time", 0.0009, "a number in [0.001, 1e+09]"),
        ("time", 10**9 + 1, "a number in [0.001, 1e+09]"),
    ],
)
def test_a_window_of_another_size_is_refused_by_name(kind, size, allowed):
    """Calls are counted one by one, in a ring of that many bytes; a time may be any number of seconds."""
    with pytest.raises(ConfigurationError) as refusal:
        BreakerPolicy(sliding_window_type=kind, sliding_window_size=size)
    assert str(refusal.value) == f"BreakerPolicy: sliding_window_size must be {allowed}, got {size!r}"
