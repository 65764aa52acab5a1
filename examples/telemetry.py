"""Guards in OpenTelemetry: their figures as metrics, and each refusal on the span in which it happens.

pip install opentelemetry-sdk
python examples/telemetry.py

The readers here keep everything in memory. A service has a PeriodicExportingMetricReader and a
BatchSpanProcessor with the exporters of opentelemetry-exporter-otlp.
"""

from __future__ import annotations

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from guardrails import Guard, RejectedError
from guardrails.integrations.opentelemetry import SpanListener, observe


def providers(reader: MetricReader, processor: SpanProcessor) -> tuple[MeterProvider, TracerProvider]:
    """Metrics and traces of one service."""
    resource = Resource.create({"service.name": "shop"})
    traces = TracerProvider(resource=resource)
    traces.add_span_processor(processor)
    return MeterProvider([reader], resource=resource), traces


def main() -> None:
    """Has a call refused inside a span, and prints what was recorded."""
    reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
    meters, traces = providers(reader, SimpleSpanProcessor(spans))
    search = Guard("search", max_concurrent_calls=5, listeners=[SpanListener()])
    observe([search], meter=meters.get_meter("shop"))
    search.force_open()
    with traces.get_tracer("shop").start_as_current_span("GET /suggest"):
        try:
            search.run(len, "guard rails")
        except RejectedError as refused:
            print(f"refused: {refused.reason}")
    (span,) = spans.get_finished_spans()
    print(span.name, [(event.name, dict(event.attributes or {})) for event in span.events])
    data = reader.get_metrics_data()
    assert data is not None  # noqa: S101 - something was collected
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            print(*sorted(metric.name for metric in scope.metrics), sep="\n")
    meters.shutdown()
    traces.shutdown()


if __name__ == "__main__":
    main()
