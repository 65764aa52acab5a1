"""Exports the figures of guards to Prometheus.

Depends on prometheus-client; must not import an HTTP framework. The figures are read at each scrape, so a
guarded call costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError("prometheus-client is missing: pip install 'guardrails-db[prometheus]'") from error

from guardrails._guard.guard import Guard
from guardrails._guard.metrics import FIGURES, SETS, Set, reading
from guardrails._guard.snapshot import GuardSnapshot
from guardrails._http.settings import checked_guards
from guardrails._util.checks import Faults

__all__ = ["CONTENT_TYPE", "GuardCollector", "page"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

Metric = CounterMetricFamily | GaugeMetricFamily

_KINDS: dict[str, type[Metric]] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
_UNITS = {"": "", "s": "seconds", "1": "ratio"}


class GuardCollector(Collector):
    """Collects the figures of guards at each scrape.

    ::

        prometheus_client.REGISTRY.register(GuardCollector([db, cache]))

    The metrics of a guard are ``guardrails_...{guard}``, those of its compartments
    ``guardrails_compartment_...{guard, compartment}``. A guard's figures include those of its compartments,
    so sum over one of the two sets, not over both. In the multiprocess mode of prometheus-client a registry
    calls no collectors: scrape each worker by itself.

    Args:
        guards: The guards. Their compartments are included, also those that are made later.

    Raises:
        ConfigurationError: ``guards`` is not a list of guards.
    """

    def __init__(self, guards: Iterable[Guard]) -> None:
        faults = Faults("GuardCollector")
        self._guards = checked_guards(faults, "guards", guards)
        faults.raise_if_any()

    def collect(self) -> Iterator[Metric]:
        """Yields one metric after the other, each with the samples of all guards; see prometheus-client."""
        for which in SETS:
            yield from _metrics(which, reading(which, self._guards))

    def describe(self) -> Iterator[Metric]:
        """Yields the metrics of `collect` without samples; a registry calls it instead of collecting."""
        for which in SETS:
            yield from _metrics(which, {})


def page(guards: Iterable[Guard]) -> Callable[[], bytes]:
    """Returns a function that renders the metrics of these guards alone.

    Args:
        guards: As for `GuardCollector`.

    Returns:
        A function without arguments. It returns the body of an answer of type `CONTENT_TYPE`.

    Raises:
        ConfigurationError: ``guards`` is not a list of guards.
    """
    registry = CollectorRegistry()
    registry.register(GuardCollector(guards))
    return lambda: generate_latest(registry)


def _metrics(which: Set, snapshots: Mapping[tuple[str, ...], GuardSnapshot]) -> Iterator[Metric]:
    for figure in FIGURES:
        own = [] if figure.label is None else [figure.label]
        name = "_".join(filter(None, ("guardrails", which.prefix, figure.name, _UNITS[figure.unit])))
        metric = _KINDS[figure.kind](name, figure.meaning, labels=[*which.labels, *own])
        for labels, snapshot in snapshots.items():
            for value, number in figure.read(snapshot).items():
                metric.add_metric([*labels, *([value] if own else [])], number)
        yield metric
