"""What Prometheus gets to see: every figure of every guard, under names that no dashboard has to guess."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from guardrails import ConfigurationError, RejectedError
from guardrails.integrations.prometheus import GuardCollector
from guardrails.integrations.starlette import status_app
from support.asgi_client import ask, http

HOSTILE = ['a"b', "back\\slash", "line\nfeed", "<script>", "\x00\x1b[31m", "\ud800", "ünï", "n" * 200]


def scrape(*guards):
    """The samples of one page: the value by the metric's name and its labels."""
    registry = CollectorRegistry()
    registry.register(GuardCollector(guards))
    return samples(generate_latest(registry).decode())


def samples(text):
    """The samples of a page; no series may be there twice."""
    read = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in read, key
            read[key] = sample.value
    return read


def of(read, name, **labels):
    """The value of one series."""
    return read[(name, *sorted(labels.items()))]


def fail():
    raise OSError("down")


def test_calls_refusals_and_slots_are_counted(make_guard):
    """A success, a failure, a call under way and a refusal for want of a slot."""
    db = make_guard(max_concurrent_calls=1, max_wait_duration=0)
    db.run(int)
    with pytest.raises(OSError, match="down"):
        db.run(fail)
    with db.call(), pytest.raises(RejectedError):
        db.run(int)
    with db.call():
        read = scrape(db)
    assert of(read, "guardrails_calls_total", guard="db", outcome="success") == 2
    assert of(read, "guardrails_calls_total", guard="db", outcome="failure") == 1
    assert of(read, "guardrails_rejections_total", guard="db", reason="bulkhead_full") == 1
    assert of(read, "guardrails_rejections_total", guard="db", reason="shed") == 0
    assert of(read, "guardrails_admissions_total", guard="db") == 4
    assert of(read, "guardrails_bulkhead_in_use", guard="db") == 1
    assert of(read, "guardrails_bulkhead_limit", guard="db") == 1
    assert of(read, "guardrails_bulkhead_usable", guard="db") == 1
    assert of(read, "guardrails_bulkhead_waiting", guard="db") == 0


def test_exactly_one_state_is_on(make_guard):
    """And it is the one the circuit is in."""
    db = make_guard()
    for steer, state in ((db.force_open, "forced_open"), (db.disable, "disabled"), (db.reset, "closed")):
        steer()
        read = scrape(db)
        on = [key for key, value in read.items() if key[0] == "guardrails_breaker_state" and value]
        assert on == [("guardrails_breaker_state", ("guard", "db"), ("state", state))]


def test_ages_and_rates(make_guard, clock):
    """Seconds and fractions; a rate without a verdict is not there, no call under way is no age."""
    db = make_guard(timeout=None)
    read = scrape(db)
    assert of(read, "guardrails_oldest_call_seconds", guard="db") == 0
    assert ("guardrails_breaker_failure_ratio", ("guard", "db")) not in read
    for number in range(20):
        with contextlib.suppress(OSError):
            db.run(int if number % 4 else fail)
    with db.call():
        clock.advance(3)
        assert of(scrape(db), "guardrails_oldest_call_seconds", guard="db") == 3
    read = scrape(db)
    assert of(read, "guardrails_breaker_failure_ratio", guard="db") == 5 / 21
    assert of(read, "guardrails_breaker_slow_call_ratio", guard="db") == 1 / 21
    assert of(read, "guardrails_slow_calls_total", guard="db") == 1


def test_compartments_have_metrics_of_their_own(make_guard):
    """Those made later too, so that the sum over all guards counts no call twice."""
    db = make_guard(max_concurrent_calls=10)
    registry = CollectorRegistry()
    registry.register(GuardCollector([db]))
    reports = db.compartment("reports")
    yearly = reports.compartment("yearly")
    yearly.run(int)
    read = samples(generate_latest(registry).decode())
    assert sum(value for key, value in read.items() if key[0] == "guardrails_admissions_total") == 1
    for name in ("reports", "reports/yearly"):
        assert of(read, "guardrails_compartment_admissions_total", guard="db", compartment=name) == 1


def test_names_of_any_kind_make_a_page_that_can_be_read(make_guard):
    """No name breaks out of its label, and two of one name are two series."""
    guards = [make_guard(name) for name in [*HOSTILE, "db", "db", "db (2)"]]
    for guard in guards:
        guard.compartment("x")
        guard.run(int)
    read = scrape(*guards)
    assert len([key for key in read if key[0] == "guardrails_admissions_total"]) == len(guards)
    assert len([key for key in read if key[0] == "guardrails_compartment_admissions_total"]) == len(guards)
    for name in ("db", "db (2)", "db (2) (2)"):
        assert of(read, "guardrails_admissions_total", guard=name) == 1


def test_the_status_application_has_the_page(make_guard):
    """In the format that Prometheus asks for, with the guards of the application and nothing else."""
    db = make_guard()
    db.run(int)
    for path in ("/metrics", "/metrics/"):
        seen = ask(status_app([db]), http(path))
        assert seen.status == 200
        assert seen.headers["content-type"].startswith("text/plain; version=")
        assert seen.headers["cache-control"] == "no-store"
        assert of(samples(seen.body.decode()), "guardrails_admissions_total", guard="db") == 1
    assert all(key[0].startswith("guardrails_") for key in samples(seen.body.decode()))
    assert ask(status_app([db]), http("/metrics", method="POST")).status == 405


def test_registering_it_reads_no_guard(make_guard, monkeypatch):
    """A registry asks what there will be by ``describe``; a second collector of the same is refused by it."""
    db = make_guard()
    registry = CollectorRegistry(auto_describe=True)
    with monkeypatch.context() as patch:
        patch.setattr(type(db), "snapshot", fail)
        registry.register(GuardCollector([db]))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(GuardCollector([db]))


@pytest.mark.parametrize("guards", [None, "db", [None], 7])
def test_wrong_guards_are_named(guards):
    """When it is made, not when it is scraped."""
    with pytest.raises(ConfigurationError, match="guards must be a list of Guard objects"):
        GuardCollector(guards)


def test_without_prometheus_client_there_is_a_hint():
    """The import names the extra; the status application works, and names it on that page."""
    code = """
import asyncio, sys
sys.modules["prometheus_client"] = None
from guardrails import Guard
from guardrails.integrations.starlette import status_app
sent = []
async def visit(path):
    async def send(message):
        sent.append(message)
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "root_path": ""}
    await status_app([Guard("db", max_concurrent_calls=1)])(scope, None, send)
asyncio.run(visit("/livez"))
asyncio.run(visit("/metrics"))
print([message["status"] for message in sent if "status" in message])
print(sent[-1]["body"].decode())
try:
    import guardrails.integrations.prometheus
except ImportError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "[200, 404]" in run.stdout
    assert run.stdout.count("pip install prometheus-client") == 2


def test_a_file_that_another_process_is_about_to_begin_is_left_out(tmp_path):
    """It is empty for a moment, and for good where that process is killed at this moment."""
    for name in ("counter_1.db", "gauge_livesum_1.db", "histogram_1.db"):
        (tmp_path / name).touch()
    code = """
from guardrails import Guard
from guardrails.integrations.prometheus import page
from guardrails.integrations._prometheus_files import write
db = Guard("db", max_concurrent_calls=1)
render = page([db])
db.run(int)
write()
print(render().decode())
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert of(samples(run.stdout), "guardrails_admissions_total", guard="db") == 1
