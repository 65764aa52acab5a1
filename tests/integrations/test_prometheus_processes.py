"""Prometheus with several processes: gunicorn's workers, one of which is killed and replaced."""

from __future__ import annotations

import os
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.polling import poll
from support.server_process import Server

CONFIG = """
from prometheus_client import multiprocess

def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""
WORK, WORKERS, SLOTS = 40, 2, 3
POOL = ("db_client_connection_pool_name", "orders")
GUNICORN = (
    "gunicorn pool_figures_app:application --workers 2 --worker-class gthread --threads 8 "
    "--bind 127.0.0.1:{port} --config %s"
)


@pytest.fixture(params=["", " --preload"], ids=["loaded in the workers", "loaded before the fork"])
def service(request, postgres, tmp_path):
    """Two workers, whose metrics are in files."""
    (tmp_path / "conf.py").write_text(CONFIG)
    (tmp_path / "metrics").mkdir()
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"), "DATABASE_URL": postgres.url("psycopg")}
    command = GUNICORN % (tmp_path / "conf.py") + request.param
    server = Server("gunicorn", command, tmp_path / "log", environ)
    try:
        yield server.wait("/internal/livez")
    finally:
        server.stop()


def scrape(server):
    """The samples of one scrape, by name and labels."""
    address = f"http://127.0.0.1:{server.address[1]}/internal/metrics"
    with urllib.request.urlopen(address, timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def load(server):
    """What each of many requests measured."""
    with ThreadPoolExecutor(12) as threads:
        return list(threads.map(lambda _: server.ask("/work"), range(WORK)))


def total(server, name):
    """The value of one of the pool's metrics over all processes."""
    return scrape(server).get((name, POOL), 0)


def assert_sums_are_right(server, measured):
    """The number of checkouts, and the sums of waiting and holding, as the callers measured them."""
    name = "db_client_connection_{}_time_seconds_{}".format
    refused = sum("refused" in each for each in measured)
    measured = [each for each in measured if "refused" not in each]
    poll(
        lambda: (
            (total(server, name("use", "count")), total(server, "guardrails_pool_exhausted_total"))
            == (len(measured), refused)
        ),
        "each checkout and refusal was written",
        10,
    )
    read = scrape(server)
    assert read["guardrails_pool_checkouts_total", POOL] == len(measured)
    for ours, theirs in (("wait", "wait"), ("use", "hold")):
        seconds = sum(each[theirs] for each in measured)
        assert read[name(ours, "sum"), POOL] == pytest.approx(seconds, rel=0.02, abs=0.02)
        assert read[(name(ours, "bucket"), POOL, ("le", "+Inf"))] == len(measured)


@pytest.mark.slow
def test_workers_are_summed_also_after_one_was_killed(service):
    """Counters keep what the killed worker did; gauges are those of the living."""
    measured = []
    while len({each["pid"] for each in measured}) < WORKERS:
        measured += load(service)
    assert_sums_are_right(service, measured)
    assert total(service, "db_client_connection_max") == WORKERS * SLOTS
    victim = measured[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    poll(
        lambda: total(service, "db_client_connection_max") == (WORKERS - 1) * SLOTS,
        "the gauges of the killed worker are gone",
        10,
    )
    assert_sums_are_right(service, measured)
    more = []
    while len({each["pid"] for each in more}) < WORKERS:
        more += load(service)
    assert victim not in {each["pid"] for each in more}
    assert_sums_are_right(service, measured + more)
    poll(
        lambda: total(service, "db_client_connection_max") == WORKERS * SLOTS,
        "the new worker has written its gauges",
        10,
    )
