"""Exports the figures of guards to OpenTelemetry, and records refusals on spans.

Depends on the API of OpenTelemetry; must not import its SDK, which the application chooses. The figures are
read when a reader collects.
"""

from __future__ import annotations

from collections.abc import Iterable

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import Histogram, Meter, Observation
except ImportError as error:
    raise ImportError("opentelemetry-api is missing: pip install 'guardrails-db[otel]'") from error

from guardrails._guard.guard import Guard
from guardrails._guard.metric_table import METRICS, Metric, Readings, read_guards
from guardrails._guard.pool_snapshot import Distribution
from guardrails._http.settings import checked_guards
from guardrails._runtime.fork import ForkedLock
from guardrails._util.checks import Faults
from guardrails.errors import ConfigurationError
from guardrails.events import CallRejected, Event

__all__ = ["SpanListener", "observe"]


def observe(guards: Iterable[Guard], *, meter: Meter | None = None) -> None:
    """Registers the figures of guards as observable instruments.

    ::

        observe([db, cache])

    The metrics are ``guardrails.*``, with the attribute ``guard``, and ``guardrails.compartment.*``, with
    ``guard`` and ``compartment``. An export to Prometheus gives them the names that
    `guardrails.integrations.prometheus` uses. A guard attached to a pool also reports its connections
    under the names of OpenTelemetry's semantic conventions (1.44, status "development"):
    ``db.client.connection.count`` by state, ``.max``, ``.idle.max``, ``.pending_requests``, ``.timeouts``,
    the histograms ``.wait_time``, ``.use_time`` and ``.create_time``, and ``db.client.operation.duration``.

    Call it once for each guard: an instrument cannot be removed.

    Args:
        guards: The guards. Their compartments are included, also those that are made later.
        meter: Creates the instruments; None takes a meter of the global provider.

    Raises:
        ConfigurationError: ``guards`` is not a list of guards, or ``meter`` is not a meter.
    """
    faults = Faults("observe")
    checked = checked_guards(faults, "guards", guards)
    faults.raise_if_any()
    if meter is not None and not isinstance(meter, Meter):
        raise ConfigurationError(f"observe: meter must be a Meter or None, got a {type(meter).__name__}")
    meter = metrics.get_meter("guardrails") if meter is None else meter
    reader = _Reader(checked)
    for metric in METRICS:
        reader.observe(meter, metric)


class SpanListener:
    """Adds the event ``guardrails.rejected`` to the current span for each refusal.

    ::

        db = protect(engine, listeners=[SpanListener()])

    The event has the attributes ``guardrails.guard``, ``guardrails.reason`` and, where there is one,
    ``guardrails.compartment`` and ``guardrails.retry_after`` in seconds.
    """

    events = (CallRejected,)

    def __call__(self, event: Event) -> None:
        """Handles one event in the context of the refused call; see `guardrails.events`."""
        span = trace.get_current_span()
        if isinstance(event, CallRejected) and span.is_recording():
            attributes: dict[str, str | float] = {
                "guardrails.guard": event.guard,
                "guardrails.reason": event.reason,
            }
            if event.compartment is not None:
                attributes["guardrails.compartment"] = event.compartment
            if event.retry_after is not None:
                attributes["guardrails.retry_after"] = event.retry_after
            span.add_event("guardrails.rejected", attributes)


class _Reader:
    """Reads the guards once for all instruments of a collection, and records what has been timed since.

    An instrument that is asked again belongs to the next collection.
    """

    def __init__(self, guards: tuple[Guard, ...]) -> None:
        self._guards = guards
        self._seen: Readings | None = None
        self._asked: set[Metric] = set()
        self._histograms: list[tuple[Metric, Histogram]] = []
        self._recorded: dict[tuple[Metric, tuple[str, ...]], Distribution] = {}
        self._lock = ForkedLock()

    def observe(self, meter: Meter, metric: Metric) -> None:
        """Creates the instrument of a metric."""
        if metric.kind == "histogram":
            histogram = meter.create_histogram(
                metric.name,
                metric.unit,
                metric.meaning,
                explicit_bucket_boundaries_advisory=metric.bounds,
            )
            self._histograms.append((metric, histogram))
            return
        conventional = metric.name.startswith("db.")
        create = (
            meter.create_observable_counter
            if metric.kind == "counter"
            else meter.create_observable_up_down_counter
            if conventional
            else meter.create_observable_gauge
        )
        create(metric.name, [lambda _: self._observations(metric)], metric.unit, metric.meaning)

    def _observations(self, metric: Metric) -> list[Observation]:
        with self._lock:
            if self._seen is None or metric in self._asked:
                self._seen = read_guards(self._guards)
                self._asked.clear()
                self._record(self._seen)
            self._asked.add(metric)
            return [
                Observation(value, dict(zip(metric.labels, labels, strict=True)))
                for labels, value in metric.read(self._seen)
                if not isinstance(value, Distribution)
            ]

    def _record(self, seen: Readings) -> None:
        # OpenTelemetry has no histogram that is read: each duration is recorded, before its collection ends.
        for metric, histogram in self._histograms:
            for labels, value in metric.read(seen):
                if isinstance(value, Distribution):
                    before = self._recorded.get((metric, labels), Distribution())
                    self._recorded[metric, labels] = value
                    attributes = dict(zip(metric.labels, labels, strict=True))
                    for seconds, count in (value - before).values():
                        for _ in range(count):
                            histogram.record(seconds, attributes)
