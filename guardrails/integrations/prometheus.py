"""The figures of guards for Prometheus, read when somebody scrapes. Knows prometheus-client, and no HTTP.

No call pays for it: a guard counts anyway.
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
        for which in SETS:
            yield from _metrics(which, reading(which, self._guards))

    def describe(self) -> Iterator[Metric]:
        """See prometheus_client: what `collect` will yield, so that a registry need not collect to know."""
        for which in SETS:
            yield from _metrics(which, {})


def page(guards: Iterable[Guard]) -> Callable[[], bytes]:
    """What to send, as `CONTENT_TYPE`, to whoever scrapes these guards alone."""
    registry = CollectorRegistry()
    registry.register(GuardCollector(guards))
    return lambda: generate_latest(registry)


def _metrics(which: Set, seen: Mapping[tuple[str, ...], GuardSnapshot]) -> Iterator[Metric]:
    for figure in FIGURES:
        own = [] if figure.label is None else [figure.label]
        name = "_".join(filter(None, ("guardrails", which.prefix, figure.name, _UNITS[figure.unit])))
        metric = _KINDS[figure.kind](name, figure.meaning, labels=[*which.labels, *own])
        for whose, snapshot in seen.items():
            for value, number in figure.read(snapshot).items():
                metric.add_metric([*whose, *([value] if own else [])], number)
        yield metric
