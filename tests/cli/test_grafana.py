"""``guardrails grafana``: a dashboard whose queries a Prometheus answers that scrapes a real service."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text

from guardrails import Adaptive, protect
from guardrails._guard.metric_table import METRICS
from guardrails.cli.grafana import grafana
from guardrails.fleet import Fleet
from guardrails.integrations.prometheus import page
from support.polling import poll

VARIABLES = {"$__rate_interval": "5s", "$guard": ".*", "$job": ".*"}


def printed(*words):
    """The dashboard."""
    done = CliRunner().invoke(grafana, [*words])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def queries(dashboard):
    """Each query with its panel's title, and with the variables as Grafana fills them in."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            yield panel["title"], expression


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    """Grafana needs that; each panel has the data source of the variable."""
    panels = printed()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    charts = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in charts)
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in charts)


def test_title_is_an_option():
    """And the identifier stays, so that an import replaces the dashboard."""
    assert (printed("--title", "shop")["title"], printed()["uid"]) == ("shop", "guardrails")


def test_every_metric_of_guards_and_pools_is_on_the_dashboard():
    """A new metric needs a place; those of compartments repeat the guard's."""
    text_of_all = json.dumps(printed())
    missing = [
        metric.name
        for metric in METRICS
        if not metric.name.startswith("guardrails.compartment.") and metric.prometheus_name not in text_of_all
    ]
    assert missing == []


def test_all_refusals_of_a_guard_count_those_of_its_compartments():
    """A refusal is counted where it happened, so a sum by guard and reason needs both metrics."""
    asked = [each for _, each in queries(printed()) if each.startswith("sum by (guard, reason)")]
    assert len(asked) == 2
    for name in ("rejections", "would_reject"):
        (query,) = (each for each in asked if f"guardrails_{name}_total" in each)
        assert f" or rate(guardrails_compartment_{name}_total" in query


def test_queries_are_promql():
    """By a parser that needs no program."""
    promql_parser = pytest.importorskip("promql_parser")
    for _, expression in queries(printed()):
        promql_parser.parse(expression)


# --- against a real Prometheus -----------------------------------------------------------------------------


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        """Writes nothing."""


@contextlib.contextmanager
def exported(guard):
    """Serves the metrics of a guard; yields the port."""
    render = page([guard])

    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain; version=0.0.4")])
        return [render()]

    with make_server("127.0.0.1", 0, application, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def prometheus(target, folder):
    """A Prometheus that scrapes a port twice a second; yields what answers a query."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    jobs = [{"job_name": "shop", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}]
    limits = {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
    (folder / "prometheus.yml").write_text(json.dumps({"global": limits, "scrape_configs": jobs}))
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with subprocess.Popen(command, cwd=folder) as process:

        def ask(expression):
            where = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
            with contextlib.suppress(OSError), urllib.request.urlopen(where, timeout=5) as answer:
                return json.load(answer)["data"]["result"]
            return []

        try:
            yield ask
        finally:
            process.terminate()
            process.wait(10)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_every_query_has_an_answer_for_a_real_service(postgres, tmp_path):
    """A service in a fleet with an adaptive limit, callers that wait and callers that are refused."""
    fleet = Fleet(f"sqlite:///{tmp_path / 'fleet.db'}", name="shop")
    engine = create_engine(postgres.url("psycopg"), pool_size=1, max_overflow=1)
    options = {"max_wait_duration": 0.01, "compartments": "declared"}
    options["max_concurrent_calls"] = Adaptive(mode="shadow")
    guard = protect(engine, name="db", fleet=fleet.budget("orders-db", connections=2), **options)
    reports = guard.compartment("reports", max_concurrent_calls=1)
    stop = threading.Event()

    def traffic():
        while not stop.wait(0.02):
            with engine.connect() as connection:
                connection.execute(text("select 1"))
            with contextlib.suppress(Exception), engine.connect(), engine.connect(), engine.connect():
                pass
            with contextlib.suppress(Exception), reports.call(), engine.connect(), engine.connect():
                pass

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        with exported(guard) as port, prometheus(port, tmp_path) as ask:
            wanted = dict.fromkeys(queries(printed()))
            poll(lambda: len(ask("guardrails_admissions_total[10s]")) == 1, "it scrapes", 20)
            end = time.monotonic() + 30
            while wanted and time.monotonic() < end:
                wanted = [(title, query) for title, query in wanted if not ask(query)]
                time.sleep(0.5)
            assert wanted == []
            legends = {re.sub(r"[{}]", "", key) for key in ask("guardrails_breaker_state")[0]["metric"]}
            assert {"job", "guard", "state"} <= legends
    finally:
        stop.set()
        thread.join()
        guard.detach()
        engine.dispose()
        fleet.close()
