"""What OpenTelemetry gets to see: every figure under Prometheus' name for it, and refusals on spans."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine

from guardrails import ConfigurationError, RejectedError, protect
from guardrails._guard.pool_snapshot import EXPORTED_BOUNDS
from guardrails.integrations.opentelemetry import SpanListener, observe
from guardrails.integrations.prometheus import GuardCollector


@pytest.fixture
def collect():
    """Has guards observed; gives what a reader collects: name -> (unit, {attributes: value})."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])

    def collect(*guards, again=False):
        if not again:
            observe(guards, meter=provider.get_meter("guardrails"))
        data = reader.get_metrics_data()
        if data is None:
            return {}
        found = data.resource_metrics[0].scope_metrics[0].metrics
        return {
            metric.name: (
                metric.unit,
                {
                    tuple(sorted(point.attributes.items())): getattr(point, "value", point)
                    for point in metric.data.data_points
                },
            )
            for metric in found
        }

    yield collect
    provider.shutdown()


def prometheus_name(name, unit, *, counts):
    """What the translation of OpenTelemetry's specification makes of a name."""
    suffix = {"": "_total" if counts else "", "s": "_seconds", "1": "_ratio"}[unit]
    return name.replace(".", "_") + suffix


def test_figures_have_the_names_and_values_of_prometheus(make_guard, collect):
    """One dashboard serves both: the same series, the same figures."""
    db = make_guard("db", max_concurrent_calls=1, max_wait_duration=0)
    part = db.compartment("reports")
    part.run(int)
    with db.call(), pytest.raises(RejectedError):
        db.run(int)
    ours = collect(db)
    registry = CollectorRegistry()
    registry.register(GuardCollector([db]))
    theirs = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    translated = {}
    for name, (unit, points) in ours.items():
        for attributes, value in points.items():
            plain, counted = (prometheus_name(name, unit, counts=counts) for counts in (False, True))
            key = (counted if (counted, attributes) in theirs else plain, attributes)
            assert key not in translated
            translated[key] = value
    assert translated == theirs
    assert translated["guardrails_rejections_total", (("guard", "db"), ("reason", "bulkhead_full"))] == 1
    assert (
        translated[
            "guardrails_compartment_calls_total",
            (("compartment", "reports"), ("guard", "db"), ("outcome", "success")),
        ]
        == 1
    )


def test_compartments_made_later_are_seen(make_guard, collect):
    """The instruments are made once and look each time."""
    db = make_guard("db")
    assert "guardrails.compartment.calls" not in collect(db)
    db.compartment("reports").run(int)
    _, points = collect(again=True)["guardrails.compartment.calls"]
    assert points[("compartment", "reports"), ("guard", "db"), ("outcome", "success")] == 1


def test_pools_have_the_names_of_the_conventions(make_guard, collect, tmp_path):
    """Connections in use, at most and waited for, of guards in front of a pool alone."""
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    db = protect(engine, name="orders", max_concurrent_calls=3)
    with engine.connect():
        ours = collect(db, make_guard("api"))
    engine.dispose()
    name = ("db.client.connection.pool.name", "orders")
    assert ours["db.client.connection.max"] == ("{connection}", {(name,): 3})
    assert ours["db.client.connection.pending_requests"] == ("{request}", {(name,): 0})
    assert ours["db.client.connection.count"] == (
        "{connection}",
        {
            (name, ("db.client.connection.state", "used")): 1,
            (name, ("db.client.connection.state", "idle")): 0,
        },
    )


def test_times_of_pools_are_histograms_with_the_bounds_of_the_conventions(collect, tmp_path):
    """Each collection has what was timed until then, once; number and sum are the pool's."""
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    db = protect(engine, name="orders")
    for again in (False, True):
        for _ in range(3):
            with engine.connect() as connection:
                connection.exec_driver_sql("select 1")
        collected = collect(db, again=again)
    engine.dispose()
    pool = db.snapshot().pool
    name = ("db.client.connection.pool.name", "orders")
    for metric, attributes, times in (
        ("db.client.connection.wait_time", (name,), pool.wait),
        ("db.client.connection.use_time", (name,), pool.hold),
        ("db.client.connection.create_time", (name,), pool.connect),
        ("db.client.operation.duration", (name, ("db.system.name", "sqlite")), pool.use),
    ):
        unit, points = collected[metric]
        point = points[attributes]
        assert (unit, tuple(point.explicit_bounds)) == ("s", EXPORTED_BOUNDS)
        assert list(point.bucket_counts) == times.buckets()
        assert point.sum == pytest.approx(times.sum)
    assert pool.use.count == 6


def test_refusals_are_on_their_span(make_guard):
    """With guard, compartment and reason; outside of a span nothing happens."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    db = make_guard("db", listeners=[SpanListener()])
    db.force_open()
    with pytest.raises(RejectedError):
        db.run(int)
    with provider.get_tracer("test").start_as_current_span("request"), pytest.raises(RejectedError):
        db.run(int)
    full = make_guard("full", max_concurrent_calls=2, max_wait_duration=0, listeners=[SpanListener()])
    full = full.compartment("part", max_concurrent_calls=1)
    with (
        provider.get_tracer("test").start_as_current_span("request"),
        full.call(),
        pytest.raises(RejectedError),
    ):
        full.run(int)
    provider.shutdown()
    first, second = (span.events for span in exporter.get_finished_spans())
    assert [(event.name, dict(event.attributes)) for event in first] == [
        ("guardrails.rejected", {"guardrails.guard": "db", "guardrails.reason": "circuit_open"})
    ]
    assert dict(second[0].attributes) == {
        "guardrails.guard": "full",
        "guardrails.compartment": "part",
        "guardrails.reason": "bulkhead_full",
    }


def test_without_a_provider_nothing_happens(make_guard):
    """The API alone has no reader; to observe costs nothing then."""
    observe([make_guard("db")])


@pytest.mark.parametrize("guards", [None, 5, "db", [5]])
def test_what_is_no_guard_is_refused(guards):
    """By name."""
    with pytest.raises(ConfigurationError, match="observe: guards must be"):
        observe(guards)
    with pytest.raises(ConfigurationError, match="observe: meter must be a Meter or None, got a int"):
        observe([], meter=5)


def test_missing_extra_is_named():
    """Without opentelemetry-api the import raises an error that names the extra."""
    script = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "try:\n    import guardrails.integrations.opentelemetry\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "pip install 'guardrails-db[otel]'" in done.stdout
