"""``guardrails alerts``: each rule fires on its fault and on no other, by the scrapes of real pools."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
from typing import get_args

import psycopg
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, text

from guardrails import BreakerPolicy, protect
from guardrails.cli._alert_rules import ALERTS
from guardrails.cli.alerts import alerts
from guardrails.errors import Reason
from guardrails.integrations.prometheus import page
from guardrails.testing import FakeClock
from support.paths import DOCS

SCRAPES = 30
"""One a minute: longer than any rule waits."""

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def printed(*words):
    """What the command prints."""
    done = CliRunner().invoke(alerts, [*words])
    assert done.exit_code == 0, done.output
    return done.output


# --- faults: each yields its guard, and a step that is done between two scrapes ----------------------------


@contextlib.contextmanager
def made(postgres, size=2, overflow=0, **options):
    """An engine with its guard, which is closed afterwards."""
    engine = create_engine(postgres.url("psycopg"), pool_size=size, max_overflow=overflow)
    settings = {"name": "db", "max_wait_duration": 0.01, "ask_server": False} | options
    guard = protect(engine, **settings)
    yield engine, guard
    engine.dispose()


def query(engine, sql="select 1"):
    """One statement; its error is the caller's."""
    with contextlib.suppress(Exception), engine.connect() as connection:
        connection.execute(text(sql))


@contextlib.contextmanager
def healthy(postgres):
    """Some statements."""
    with made(postgres) as (engine, guard):
        yield guard, lambda: [query(engine) for _ in range(5)]


@contextlib.contextmanager
def locked(postgres):
    """Each statement waits for a lock, until the circuit opens."""
    policy = BreakerPolicy(minimum_number_of_calls=3, wait_duration_in_open_state=600)
    with psycopg.connect(postgres.url("")) as other:
        other.execute("create table alerted (id int)")
        other.commit()
        other.execute("lock table alerted in access exclusive mode")
        try:
            with made(postgres, timeout=0.05, breaker=policy) as (engine, guard):
                yield guard, lambda: query(engine, "select * from alerted")
        finally:
            other.execute("drop table alerted")


@contextlib.contextmanager
def locked_compartment(postgres):
    """Statements of one workload wait for a lock; the others are well, and so is the whole guard."""
    policy = BreakerPolicy(minimum_number_of_calls=3, wait_duration_in_open_state=600)
    with locked(postgres), made(postgres, size=10, timeout=0.05, breaker=policy) as (engine, guard):
        reports = guard.compartment("reports", max_concurrent_calls=2)
        guard.compartment("orders")

        def step():
            with contextlib.suppress(Exception), reports.call():
                query(engine, "select * from alerted")
            for _ in range(20):
                query(engine)

        yield guard, step


@contextlib.contextmanager
def crowded_compartment(postgres):
    """More callers of one workload than its share; the whole guard has room."""
    with made(postgres, size=10) as (engine, guard):
        reports = guard.compartment("reports", max_concurrent_calls=1)
        guard.compartment("orders")

        def step():
            with reports.call(), engine.connect():
                query(engine)
            for _ in range(10):
                query(engine)

        yield guard, step


@contextlib.contextmanager
def forced_open(postgres):
    """Somebody has forced the circuit open, and forgotten it."""
    with made(postgres) as (engine, guard):
        guard.force_open()
        yield guard, lambda: query(engine)


@contextlib.contextmanager
def overloaded(postgres, **options):
    """More callers than slots; the statements themselves are well."""
    with made(postgres, size=3, max_concurrent_calls=2, **options) as (engine, guard):

        def step():
            with engine.connect(), engine.connect():
                for _ in range(2):
                    query(engine)
            for _ in range(5):
                query(engine)

        yield guard, step


@contextlib.contextmanager
def shadowed(postgres):
    """The same in shadow, where callers that must not wait are let in."""
    with overloaded(postgres, mode="shadow", max_wait_duration=0.0) as fault:
        yield fault


@contextlib.contextmanager
def leaking(postgres):
    """Both connections are out, and nothing comes back; callers are refused."""
    clock = FakeClock()
    with made(postgres, clock=clock, leak_after=None) as (engine, guard):
        kept = [engine.connect() for _ in range(2)]

        def step():
            clock.advance(60)
            query(engine)

        yield guard, step
        for connection in kept:
            connection.close()


@contextlib.contextmanager
def failing(postgres):
    """One statement of ten does not end in time."""
    with made(postgres, timeout=0.05) as (engine, guard):

        def step():
            query(engine, "select pg_sleep(1)")
            for _ in range(9):
                query(engine)

        yield guard, step


@contextlib.contextmanager
def queueing(postgres):
    """One caller of three waits for an eighth of a second."""
    with made(postgres, max_wait_duration=2.0) as (engine, guard):

        def step():
            held = [engine.connect(), engine.connect()]
            timer = threading.Timer(0.125, lambda: [each.close() for each in held])
            timer.start()
            query(engine)
            timer.join()

        yield guard, step


@contextlib.contextmanager
def churning(postgres):
    """A pool keeps one connection, and two are in use."""
    with made(postgres, size=1, overflow=1) as (engine, guard):

        def step():
            for _ in range(5):
                with engine.connect(), engine.connect():
                    pass

        yield guard, step


FAULTS = {
    "GuardrailsCircuitOpen": locked,
    "GuardrailsCircuitOpen of a compartment": locked_compartment,
    "GuardrailsOverloaded in a compartment": crowded_compartment,
    "GuardrailsCircuitByHand": forced_open,
    "GuardrailsOverloaded": overloaded,
    "GuardrailsShadowWouldRefuse": shadowed,
    "GuardrailsConnectionsHeld": leaking,
    "GuardrailsFailing": failing,
    "GuardrailsWaitHigh": queueing,
    "GuardrailsConnectionChurn": churning,
}


def scraped(guard, step):
    """The series of a service that is scraped once a minute, by name and labels."""
    render, series = page([guard]), {}
    for number in range(SCRAPES):
        for family in text_string_to_metric_families(render().decode()):
            for sample in family.samples:
                labels = {**sample.labels, "job": "shop", "instance": "a"}
                key = sample.name + json.dumps(labels).replace('": "', '"="')
                key = re.sub(r'"(\w+)"="', r'\1="', key)
                series.setdefault(key, ["_"] * number).append(f"{sample.value:.9g}")
        step()
    return [{"series": key, "values": " ".join(values)} for key, values in series.items()]


def fires(tmp_path, series, expected, interval="1m", last=SCRAPES - 1):
    """Asserts that exactly these rules fire at the last scrape, as promtool says."""
    (tmp_path / "rules.yml").write_text(printed())
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    firing = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{last * int(interval[:-1])}{interval[-1]}",
        "exp_samples": samples,
    }
    case = {"interval": interval, "input_series": series, "promql_expr_test": [firing]}
    test = {"rule_files": ["rules.yml"], "evaluation_interval": interval, "tests": [case]}
    (tmp_path / "test.yml").write_text(json.dumps(test))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def circuit(states, refused, level="", more=""):
    """The series of a guard, or of its compartment, that is scraped every 15 s: all of what its rules read.

    Args:
        states: A letter for each scrape: ``c``, ``o`` or ``h`` for closed, open or half-open.
        refused: Refusals of a full queue between two scrapes, beside 100 calls of which ten fail.
        level: ``"compartment_"`` for a compartment.
        more: Its labels.
    """
    labels, last = f'job="shop", instance="a", guard="db"{more}', len(states) - 1
    shown = {
        f'guardrails_{level}breaker_state{{{labels}, state="{name}"}}': " ".join(
            str(int(state == name[0])) for state in states
        )
        for name in ("closed", "open", "half_open")
    }
    rising = {
        f"guardrails_admissions_total{{{labels}}}": 100,
        f'guardrails_calls_total{{{labels}, outcome="success"}}': 90,
        f'guardrails_calls_total{{{labels}, outcome="failure"}}': 10,
        f'guardrails_{level}rejections_total{{{labels}, reason="queue_timeout"}}': refused,
    }
    shown |= {key: f"0+{step}x{last}" for key, step in rising.items()}
    return [{"series": key, "values": values} for key, values in shown.items()]


@promtool
@pytest.mark.sampled
@pytest.mark.parametrize("name", FAULTS)
def test_each_alert_fires_on_its_fault_and_on_nothing_else(postgres, tmp_path, name):
    """The figures are those of a real pool with that fault."""
    with FAULTS[name](postgres) as (guard, step):
        series = scraped(guard, step)
    fires(tmp_path, series, {name.partition(" ")[0]})


@promtool
def test_no_alert_fires_on_a_healthy_service(postgres, tmp_path):
    """Statements come and go."""
    with healthy(postgres) as (guard, step):
        series = scraped(guard, step)
    fires(tmp_path, series, set())


@promtool
@pytest.mark.sampled
@pytest.mark.parametrize("level", ["", "compartment_"])
@pytest.mark.parametrize("pattern", ["ccoo", "co", "ch", "ccch"])
def test_a_circuit_that_flaps_has_an_alert(tmp_path, level, pattern):
    """It closes between two probes of a sick dependency; that alert excludes the others, and fires itself."""
    states = (pattern * 61)[:61]
    series = circuit(states, 75, level, ', compartment="orders"' if level else "")
    fires(tmp_path, series, {"GuardrailsCircuitOpen"}, "15s", 60)


@promtool
def test_a_circuit_that_was_open_for_a_moment_has_no_alert_and_excludes_none(tmp_path):
    """One scrape in five minutes: the queue and the failures are another fault."""
    states = ("o" + "c" * 19) * 3 + "c"
    fires(tmp_path, circuit(states, 75), {"GuardrailsOverloaded", "GuardrailsFailing"}, "15s", 60)


def test_every_alert_has_a_fault_and_a_runbook():
    """A new rule needs both."""
    assert {name.partition(" ")[0] for name in FAULTS} == {alert.name for alert in ALERTS}
    headings = re.findall(r"^## (\w+)$", (DOCS / "production" / "runbooks.md").read_text(), re.MULTILINE)
    assert {alert.name for alert in ALERTS} <= set(headings)


def test_every_problem_type_has_a_section():
    """Clients look for the words after the last colon."""
    headings = re.findall(r"^## (\w+)$", (DOCS / "production" / "why-503.md").read_text(), re.MULTILINE)
    assert {*get_args(Reason), "timeout", "commit_unknown"} <= set(headings)


@promtool
def test_promtool_accepts_the_rules(tmp_path):
    """The whole file, as Prometheus reads it."""
    (tmp_path / "rules.yml").write_text(printed("--runbooks", "https://example.org/it's"))
    subprocess.run(["promtool", "check", "rules", "rules.yml"], cwd=tmp_path, check=True, capture_output=True)


def test_expressions_are_promql():
    """By a parser that needs no program; each metric is one that is exported."""
    promql_parser = pytest.importorskip("promql_parser")
    for alert in ALERTS:
        promql_parser.parse(alert.expression)


def test_links_lead_to_the_page_that_was_named():
    """In YAML and in JSON."""
    rules = json.loads(printed("--json", "--runbooks", "https://example.org/books"))["alerts"]
    assert rules[0]["runbook_url"] == "https://example.org/books#guardrailscircuitopen"
    assert 'runbook_url: "/books#guardrailscircuitopen"' in printed("--runbooks", "/books")
    assert "runbook_url" not in printed()
    assert json.loads(printed("--json"))["alerts"][0]["runbook_url"] is None
