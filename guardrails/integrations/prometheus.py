"""The figures of guards for Prometheus, read when somebody scrapes. Knows prometheus-client, and no HTTP.

No call pays for it: a guard counts anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, get_args

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError("prometheus-client is missing: pip install 'guardrails-db[prometheus]'") from error

from guardrails._checks import Faults
from guardrails._core.breaker import State
from guardrails._guard import Guard
from guardrails._snapshot import GuardSnapshot
from guardrails.errors import Reason
from guardrails.integrations._edge import checked_guards

__all__ = ["CONTENT_TYPE", "GuardCollector", "page"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

Metric = CounterMetricFamily | GaugeMetricFamily
_Seen = Mapping[tuple[str, ...], GuardSnapshot]


class _Figure(NamedTuple):
    """One metric: its name without the prefix, and how it is read, by the value of its own label."""

    kind: type[Metric]
    name: str
    meaning: str
    read: Callable[[GuardSnapshot], Mapping[str, float]]
    label: str | None = None


def _states(seen: GuardSnapshot) -> Mapping[str, float]:
    return {state: float(state == seen.state) for state in get_args(State)}


def _outcomes(seen: GuardSnapshot) -> Mapping[str, float]:
    return {"success": seen.succeeded, "failure": seen.failed, "abandoned": seen.abandoned}


def _rejections(seen: GuardSnapshot) -> Mapping[str, float]:
    # The reasons nobody was refused for yet are there from the beginning, or rate() misses the first.
    return {reason: seen.rejected.get(reason, 0) for reason in get_args(Reason)}


def _plain(read: Callable[[GuardSnapshot], float | None]) -> Callable[[GuardSnapshot], Mapping[str, float]]:
    """A figure without a label of its own; None leaves it out."""

    def figure(seen: GuardSnapshot) -> Mapping[str, float]:
        value = read(seen)
        return {} if value is None else {"": value}

    return figure


_FIGURES = (
    _Figure(
        GaugeMetricFamily,
        "breaker_state",
        "1 for the state of the circuit, 0 for all others.",
        _states,
        "state",
    ),
    _Figure(
        GaugeMetricFamily,
        "breaker_failure_ratio",
        "Failed calls in the window, 0 to 1; absent while there are too few for a verdict.",
        _plain(lambda seen: seen.failure_rate),
    ),
    _Figure(
        GaugeMetricFamily,
        "breaker_slow_call_ratio",
        "Slow calls in the window, 0 to 1; absent while there are too few for a verdict.",
        _plain(lambda seen: seen.slow_call_rate),
    ),
    _Figure(
        CounterMetricFamily,
        "calls",
        "Calls that ended; in front of a pool, statements and commands.",
        _outcomes,
        "outcome",
    ),
    _Figure(CounterMetricFamily, "slow_calls", "Calls that were slow.", _plain(lambda seen: seen.slow)),
    _Figure(
        CounterMetricFamily,
        "late_results",
        "Calls that ended after the circuit had moved on.",
        _plain(lambda seen: seen.late_results),
    ),
    _Figure(CounterMetricFamily, "rejections", "Calls that were refused.", _rejections, "reason"),
    _Figure(CounterMetricFamily, "admissions", "Slots given out.", _plain(lambda seen: seen.admitted)),
    _Figure(GaugeMetricFamily, "bulkhead_in_use", "Slots taken.", _plain(lambda seen: seen.in_use)),
    _Figure(
        GaugeMetricFamily,
        "bulkhead_limit",
        "Slots there are.",
        _plain(lambda seen: seen.max_concurrent_calls),
    ),
    _Figure(
        GaugeMetricFamily,
        "bulkhead_waiting",
        "Callers queueing for a slot.",
        _plain(lambda seen: seen.waiting),
    ),
    _Figure(
        GaugeMetricFamily,
        "oldest_call_seconds",
        "Age of the oldest call or checkout under way; 0 while there is none.",
        _plain(lambda seen: seen.oldest_in_flight or 0.0),
    ),
)


class GuardCollector(Collector):
    """What Prometheus should know of guards.

    ::

        prometheus_client.REGISTRY.register(GuardCollector([db, cache]))

    The metrics of a guard are ``guardrails_...{guard}``, those of its compartments
    ``guardrails_compartment_...{guard, compartment}``: a guard's own figures include its compartments', so
    that a sum over either is never counted twice. In the multiprocess mode of prometheus-client registries
    ask no collectors; have each worker scraped for itself.

    Args:
        guards: The guards, each with its compartments, those included that are made later.

    Raises:
        ConfigurationError: ``guards`` is no list of guards.
    """

    def __init__(self, guards: Iterable[Guard]) -> None:
        faults = Faults("GuardCollector")
        self._guards = checked_guards(faults, "guards", guards)
        faults.raise_if_any()

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client: one metric after the other, with the figures of all guards."""
        guards = list(_distinct((guard.name, guard) for guard in self._guards))
        whole: _Seen = {(name,): guard.snapshot() for name, guard in guards}
        yield from _metrics("guardrails_", ["guard"], whole)
        parts: _Seen = {
            (name, path): part.snapshot() for name, guard in guards for path, part in _distinct(_parts(guard))
        }
        yield from _metrics("guardrails_compartment_", ["guard", "compartment"], parts)

    def describe(self) -> Iterator[Metric]:
        """See prometheus_client: what `collect` will yield, so that a registry need not collect to know."""
        for prefix in ("guardrails_", "guardrails_compartment_"):
            yield from _metrics(prefix, [], {})


def page(guards: Iterable[Guard]) -> Callable[[], bytes]:
    """What to send, as `CONTENT_TYPE`, to whoever scrapes these guards alone."""
    registry = CollectorRegistry()
    registry.register(GuardCollector(guards))
    return lambda: generate_latest(registry)


def _metrics(prefix: str, labels: list[str], seen: _Seen) -> Iterator[Metric]:
    for kind, name, meaning, read, label in _FIGURES:
        own = [] if label is None else [label]
        metric = kind(prefix + name, meaning, labels=labels + own)
        for whose, snapshot in seen.items():
            for value, figure in read(snapshot).items():
                metric.add_metric([*whose, *([value] if own else [])], figure)
        yield metric


def _parts(guard: Guard, above: str = "") -> Iterator[tuple[str, Guard]]:
    """The compartments of a guard and theirs, by their names from the outermost on."""
    for part in guard.compartments:
        yield above + part.name, part
        yield from _parts(part, f"{above}{part.name}/")


def _distinct(named: Iterable[tuple[str, Guard]]) -> Iterator[tuple[str, Guard]]:
    # Two of one name would be one series, and Prometheus would refuse the page.
    taken: set[str] = set()
    for name, guard in named:
        # What is no character, such as half of a surrogate pair, cannot be sent.
        text = name.encode("utf-8", "backslashreplace").decode("utf-8")
        own, number = text, 1
        while own in taken:
            number += 1
            own = f"{text} ({number})"
        taken.add(own)
        yield own, guard
