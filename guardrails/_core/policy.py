"""The settings of a circuit breaker, checked when built. Depends on checks; must not import the breaker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from guardrails._util.checks import Faults, unknown_option

__all__ = ["BreakerPolicy"]


_LARGEST_RING = 10**7
"""Largest count window in calls, of a byte each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """The rules by which a circuit opens, stays open and closes.

    Names follow resilience4j. Durations are seconds, rates are fractions in (0, 1].

    Attributes:
        failure_rate_threshold: Opens when failures / calls in the window reach this.
        slow_call_rate_threshold: Opens when slow calls / calls in the window reach this.
        slow_call_duration_threshold: A call is slow when it takes longer than this many seconds. A call that
            is still running counts as slow as soon as it has taken longer.
        sliding_window_type: ``"time"`` counts the calls of the last seconds, ``"count"`` the last calls.
        sliding_window_size: Seconds (kept in ten slices) or calls.
        minimum_number_of_calls: With fewer calls in the window the rates do not open the circuit. In a count
            window that is smaller than this, a full window suffices.
        wait_duration_in_open_state: Seconds for which the circuit stays open the first time. With 0, probes
            may start at once.
        open_backoff_multiplier: Each reopening in a row waits this many times longer than the last.
        max_wait_duration_in_open_state: Longest wait in seconds to which the multiplier may lead.
        open_jitter: Fraction in [0, 1] by which each open period is randomly longer or shorter, so that many
            processes do not probe at the same time.
        permitted_calls_in_half_open_state: Probes of a half-open round. The circuit closes or reopens by
            their rates.
        max_wait_duration_in_half_open_state: Seconds after which a probe's permit expires. A probe that has
            not ended by then counts as slow, so that a lost probe cannot keep the circuit half-open.
        recovery_ramp: Seconds after a recovery until calls may use every slot. At first they may use as many
            as a half-open round has probes, then more in proportion to the time, so that all waiting users at
            once cannot overload a dependency that is slow at first. 0 lets them use every slot at once, as
            does a circuit that is closed by hand.
        consecutive_failures: Opens after this many failures in a row as well. None switches the rule off.
        is_failure: ``(exception) -> bool``. By default every ``Exception`` is a failure. An exception that is
            no failure counts as a success: the dependency has answered.
        is_failure_result: ``(result) -> bool``, for calls that return errors instead of raising them.

    Raises:
        ConfigurationError: One or more fields are wrong; the message names each of them.
    """

    failure_rate_threshold: float = 0.5
    slow_call_rate_threshold: float = 0.5
    slow_call_duration_threshold: float = 1.0
    sliding_window_type: Literal["time", "count"] = "time"
    sliding_window_size: float = 10
    minimum_number_of_calls: int = 10
    wait_duration_in_open_state: float = 2.0
    open_backoff_multiplier: float = 1.0
    max_wait_duration_in_open_state: float = 60.0
    open_jitter: float = 0.1
    permitted_calls_in_half_open_state: int = 3
    max_wait_duration_in_half_open_state: float = 10.0
    recovery_ramp: float = 0.0
    consecutive_failures: int | None = None
    is_failure: Callable[[BaseException], object] | None = None
    is_failure_result: Callable[[Any], object] | None = None

    def __new__(cls, *_: object, **options: object) -> Self:
        for name in options:
            if name not in cls.__dataclass_fields__:
                raise unknown_option("BreakerPolicy", name, (field.name for field in fields(cls)))
        return object.__new__(cls)

    def __post_init__(self) -> None:
        faults = Faults("BreakerPolicy")
        faults.rate("failure_rate_threshold", self.failure_rate_threshold)
        faults.rate("slow_call_rate_threshold", self.slow_call_rate_threshold)
        faults.seconds("slow_call_duration_threshold", self.slow_call_duration_threshold)
        faults.choice("sliding_window_type", self.sliding_window_type, ("time", "count"))
        if self.sliding_window_type == "count":
            faults.count("sliding_window_size", self.sliding_window_size, most=_LARGEST_RING)
        else:
            faults.number("sliding_window_size", self.sliding_window_size, 0.001, 10**9)
        faults.count("minimum_number_of_calls", self.minimum_number_of_calls)
        faults.seconds("wait_duration_in_open_state", self.wait_duration_in_open_state, zero=True)
        faults.number("open_backoff_multiplier", self.open_backoff_multiplier, 1, 1000)
        faults.seconds("max_wait_duration_in_open_state", self.max_wait_duration_in_open_state)
        faults.number("open_jitter", self.open_jitter, 0, 1)
        faults.count("permitted_calls_in_half_open_state", self.permitted_calls_in_half_open_state)
        faults.seconds("max_wait_duration_in_half_open_state", self.max_wait_duration_in_half_open_state)
        faults.seconds("recovery_ramp", self.recovery_ramp, zero=True)
        faults.count("consecutive_failures", self.consecutive_failures, none=True)
        faults.callable("is_failure", self.is_failure)
        faults.callable("is_failure_result", self.is_failure_result)
        faults.raise_if_any()
