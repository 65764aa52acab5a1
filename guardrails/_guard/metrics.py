"""The exported figures of guards. Depends on guards; must not import a monitoring system."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, get_args

from guardrails._core.breaker import State
from guardrails._core.shadow import Mode
from guardrails._guard.compartments import shown_compartments
from guardrails._guard.guard import Guard
from guardrails._guard.snapshot import GuardSnapshot
from guardrails.errors import Reason

__all__ = ["FIGURES", "SETS", "Figure", "Set", "reading", "sendable"]


class Figure(NamedTuple):
    """One metric.

    Attributes:
        kind: ``"counter"`` if it only grows.
        name: Its name without prefix and unit.
        unit: ``"s"`` for seconds, ``"1"`` for a ratio, empty for a number of things.
        meaning: Its help text.
        read: Returns the figure by the value of its own label; under ``""`` without a label.
        label: Its own label, or None.
    """

    kind: Literal["counter", "gauge"]
    name: str
    unit: Literal["", "s", "1"]
    meaning: str
    read: Callable[[GuardSnapshot], Mapping[str, float]]
    label: str | None = None


class Set(NamedTuple):
    """The metrics of guards, or those of compartments.

    Attributes:
        prefix: The prefix of their names.
        labels: The labels that identify a guard or compartment.
    """

    prefix: str
    labels: tuple[str, ...]


GUARDS = Set("", ("guard",))

SETS = (GUARDS, Set("compartment", ("guard", "compartment")))
"""A guard's own figures include its compartments', so that a sum over either set counts nothing twice."""


def _states(seen: GuardSnapshot) -> Mapping[str, float]:
    return {state: float(state == seen.state) for state in get_args(State)}


def _outcomes(seen: GuardSnapshot) -> Mapping[str, float]:
    return {"success": seen.succeeded, "failure": seen.failed, "abandoned": seen.abandoned}


def _rejections(seen: GuardSnapshot) -> Mapping[str, float]:
    # Every reason is exported from the start, at 0: otherwise rate() misses its first refusal.
    return {reason: seen.rejected.get(reason, 0) for reason in get_args(Reason)}


def _modes(seen: GuardSnapshot) -> Mapping[str, float]:
    return {mode: float(mode == seen.mode) for mode in get_args(Mode)}


def _would_reject(seen: GuardSnapshot) -> Mapping[str, float]:
    return {reason: seen.would_reject.get(reason, 0) for reason in get_args(Reason)}


def _plain(read: Callable[[GuardSnapshot], float | None]) -> Callable[[GuardSnapshot], Mapping[str, float]]:
    """A figure without a label of its own; it is omitted when ``read`` returns None."""

    def figure(seen: GuardSnapshot) -> Mapping[str, float]:
        value = read(seen)
        return {} if value is None else {"": value}

    return figure


FIGURES = (
    Figure(
        "gauge",
        "breaker_state",
        "",
        "1 for the state of the circuit, 0 for all others.",
        _states,
        "state",
    ),
    Figure(
        "gauge",
        "breaker_failure",
        "1",
        "Failed calls in the window, 0 to 1; absent while there are too few for a verdict.",
        _plain(lambda seen: seen.failure_rate),
    ),
    Figure(
        "gauge",
        "breaker_slow_call",
        "1",
        "Slow calls in the window, 0 to 1; absent while there are too few for a verdict.",
        _plain(lambda seen: seen.slow_call_rate),
    ),
    Figure(
        "counter",
        "calls",
        "",
        "Calls that ended; in front of a pool, statements and commands.",
        _outcomes,
        "outcome",
    ),
    Figure("counter", "slow_calls", "", "Calls that were slow.", _plain(lambda seen: seen.slow)),
    Figure(
        "counter",
        "late_results",
        "",
        "Calls that ended after the circuit had moved on.",
        _plain(lambda seen: seen.late_results),
    ),
    Figure("counter", "rejections", "", "Calls that were refused.", _rejections, "reason"),
    Figure("gauge", "mode", "", "1 for the mode of the guard, 0 for the others.", _modes, "mode"),
    Figure(
        "counter",
        "would_reject",
        "",
        "Calls let in in shadow that would have been refused.",
        _would_reject,
        "reason",
    ),
    Figure(
        "counter",
        "would_stop",
        "",
        "Calls in shadow that passed a deadline at which they would have been stopped.",
        _plain(lambda seen: seen.would_stop),
    ),
    Figure("counter", "admissions", "", "Slots given out.", _plain(lambda seen: seen.admitted)),
    Figure("gauge", "bulkhead_in_use", "", "Slots taken.", _plain(lambda seen: seen.in_use)),
    Figure(
        "gauge",
        "bulkhead_limit",
        "",
        "Slots there are.",
        _plain(lambda seen: seen.max_concurrent_calls),
    ),
    Figure(
        "gauge",
        "bulkhead_usable",
        "",
        "Slots that calls may use now: fewer than there are during a recovery ramp or by an adaptive limit.",
        _plain(lambda seen: seen.usable_slots),
    ),
    Figure(
        "gauge",
        "adaptive_limit",
        "",
        "Concurrent calls that serve most, as far as is known; absent without an adaptive limit.",
        _plain(lambda seen: seen.adaptive_limit),
    ),
    Figure(
        "gauge",
        "bulkhead_waiting",
        "",
        "Callers queueing for a slot.",
        _plain(lambda seen: seen.waiting),
    ),
    Figure(
        "gauge",
        "oldest_call",
        "s",
        "Age of the oldest call or checkout under way; 0 while there is none.",
        _plain(lambda seen: seen.oldest_in_flight or 0.0),
    ),
)


def reading(which: Set, guards: Iterable[Guard]) -> Mapping[tuple[str, ...], GuardSnapshot]:
    """The present figures of all guards, or of all compartments, by the values of their labels."""
    named = list(_distinct((guard.name, guard) for guard in guards))
    if which is GUARDS:
        return {(name,): guard.snapshot() for name, guard in named}
    return {(name, path): part.snapshot() for name, guard in named for path, part in _distinct(_parts(guard))}


def _parts(guard: Guard, above: str = "") -> Iterator[tuple[str, Guard]]:
    """The compartments of a guard, and theirs, with their paths of names from the outermost on."""
    for part in shown_compartments(guard):
        yield above + part.name, part
        yield from _parts(part, f"{above}{part.name}/")


def sendable(name: str) -> str:
    """Returns a name that can be encoded: half of a surrogate pair is written as an escape."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _distinct(named: Iterable[tuple[str, Guard]]) -> Iterator[tuple[str, Guard]]:
    # Two guards of one name would be one series, and Prometheus would reject the page.
    taken: set[str] = set()
    for name, guard in named:
        text = sendable(name)
        own, number = text, 1
        while own in taken:
            number += 1
            own = f"{text} ({number})"
        taken.add(own)
        yield own, guard
