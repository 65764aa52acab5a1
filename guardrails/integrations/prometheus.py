"""Exports the figures of guards to Prometheus.

Depends on prometheus-client; must not import an HTTP framework. The figures are read at each scrape, so a
guarded call costs nothing more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError("prometheus-client is missing: pip install prometheus-client") from error

from guardrails._guard.guard import Guard
from guardrails._guard.metric_table import CLASSIC, METRICS, Metric, Readings, Value, read_guards
from guardrails._guard.metrics import SETS
from guardrails._guard.pool_snapshot import Distribution
from guardrails._http.settings import checked_guards
from guardrails._util.checks import Faults
from guardrails.integrations._prometheus_files import keep_written

__all__ = ["CONTENT_TYPE", "GuardCollector", "page"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

_FAMILIES: dict[str, type[Family]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}

_NOTHING = Readings({which: {} for which in SETS})


def _is_multiprocess() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ or "prometheus_multiproc_dir" in os.environ


class GuardCollector(Collector):
    """Collects the figures of guards at each scrape.

    ::

        prometheus_client.REGISTRY.register(GuardCollector([db, cache]))

    The metrics of a guard are ``guardrails_...{guard}``, those of its compartments
    ``guardrails_compartment_...{guard, compartment}``. A guard's figures include those of its compartments,
    so sum over one of the two sets, not over both. The connections of pools have the names of OpenTelemetry's
    semantic conventions, such as ``db_client_connection_count{db_client_connection_pool_name}``.

    In the multiprocess mode of prometheus-client, where ``PROMETHEUS_MULTIPROC_DIR`` is set, a registry calls
    no collectors. There the figures are written to its files once a second, by a thread.

    Args:
        guards: The guards. Their compartments are included, also those that are made later.
        classic_names: Whether to export the seven classic metrics of pools, too:
            ``db_pool_open_connections``, ``db_pool_in_use_connections``, ``db_pool_idle_connections``,
            ``db_pool_wait_total``, ``db_pool_wait_duration_seconds``, ``db_connection_hold_duration_seconds``
            and ``db_pool_exhausted_total``, with the label ``pool_name``.

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """

    def __init__(self, guards: Iterable[Guard], *, classic_names: bool = False) -> None:
        faults = Faults("GuardCollector")
        self._guards = checked_guards(faults, "guards", guards)
        faults.flag("classic_names", classic_names)
        faults.raise_if_any()
        self._metrics = (*METRICS, *CLASSIC) if classic_names else METRICS
        if _is_multiprocess():
            keep_written(self._guards, self._metrics)

    def collect(self) -> Iterator[Family]:
        """Yields one metric after the other, each with the samples of all guards; see prometheus-client."""
        seen = read_guards(self._guards)
        return (_family(metric, seen) for metric in self._metrics)

    def describe(self) -> Iterator[Family]:
        """Yields the metrics of `collect` without samples; a registry calls it instead of collecting."""
        return (_family(metric, _NOTHING) for metric in self._metrics)


def page(guards: Iterable[Guard], *, classic_names: bool = False) -> Callable[[], bytes]:
    """Returns a function that renders the metrics of these guards alone.

    In multiprocess mode they are those of all processes.

    Args:
        guards: As for `GuardCollector`.
        classic_names: As for `GuardCollector`.

    Returns:
        A function without arguments. It returns the body of an answer of type `CONTENT_TYPE`.

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """
    collector: Collector = GuardCollector(guards, classic_names=classic_names)
    registry = CollectorRegistry()
    registry.register(_OfAllProcesses(collector) if _is_multiprocess() else collector)
    return lambda: generate_latest(registry)


class _OfAllProcesses(Collector):
    """The metrics of a collector as the processes of a service have written them."""

    def __init__(self, collector: Collector) -> None:
        self._names = {family.name for family in collector.describe()}  # type: ignore[attr-defined] # of ours
        MultiProcessCollector(None)  # type: ignore[no-untyped-call] # checks the folder
        self._folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])

    def collect(self) -> Iterator[Family]:
        """See prometheus-client."""
        files = [str(path) for path in self._folder.glob("*.db") if _is_begun(path)]
        families = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return (family for family in families if family.name in self._names)

    def describe(self) -> Iterator[Family]:
        """See prometheus-client."""
        return iter(())


def _is_begun(path: Path) -> bool:
    """False for a file that its process is about to begin.

    prometheus-client's collector fails at an empty file, so a scrape in that moment would fail, and every
    scrape if the process is killed in that moment.
    """
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False  # `mark_process_dead` removes files meanwhile


def _family(metric: Metric, seen: Readings) -> Family:
    names = [*metric.prometheus_labels]
    family = _FAMILIES[metric.kind](metric.prometheus_name, metric.meaning, labels=names)
    for labels, value in metric.read(seen):
        _add(family, metric, labels, value)
    return family


def _add(family: Family, metric: Metric, labels: tuple[str, ...], value: Value) -> None:
    if isinstance(family, HistogramMetricFamily) and isinstance(value, Distribution):
        bounds = [*map(str, metric.bounds), "+Inf"]
        counts = value.cumulative(metric.bounds)
        family.add_metric(labels, [*zip(bounds, counts, strict=True)], value.sum)
    elif not isinstance(family, HistogramMetricFamily) and not isinstance(value, Distribution):
        family.add_metric(labels, value)
