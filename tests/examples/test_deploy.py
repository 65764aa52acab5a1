"""The configuration of the examples fits the service, the commands that make it, and itself."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from guardrails.cli._commands import commands
from support.paths import EXAMPLES

DEPLOY = EXAMPLES / "deploy"
SERVICE = EXAMPLES / "fastapi_service"


def printed_by(command):
    """What a command of ``guardrails`` prints."""
    return CliRunner().invoke(commands, [command], catch_exceptions=False).stdout


@pytest.mark.parametrize(
    ("command", "file"),
    [("alerts", "guardrails.rules.yml"), ("grafana", "grafana/dashboards/guardrails.json")],
)
def test_generated_files_are_what_the_commands_print(command, file):
    """To mend it: run the command, and write its output there."""
    assert (DEPLOY / file).read_text() == printed_by(command)


def documents(name):
    """The documents of a YAML file."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_its_configuration():
    checked = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"],
        cwd=DEPLOY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "8 rules found" in checked.stdout


def test_compose_mounts_files_that_exist_and_grafana_reads_what_is_mounted():
    (compose,) = documents("compose.yaml")
    mounts = {
        inside: DEPLOY / outside
        for service in compose["services"].values()
        for outside, inside, _ in (mount.split(":") for mount in service.get("volumes", ()))
    }
    assert all(path.exists() for path in mounts.values())
    (provider,) = documents("grafana/provisioning/dashboards/guardrails.yaml")
    dashboards = mounts[provider["providers"][0]["options"]["path"]]
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert json.loads((dashboards / home.rpartition("/")[2]).read_text())["uid"] == "guardrails"
    (source,) = documents("grafana/provisioning/datasources/prometheus.yaml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
    (scrape,) = documents("prometheus.yml")[0]["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["shop:8000"]}]
    build = compose["services"]["shop"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()


def test_the_pages_that_are_probed_and_scraped_exist():
    """In the service as it is."""
    program = (
        "from starlette.testclient import TestClient; from shop.main import app; client = TestClient(app)\n"
        "import sys; print([client.get(path).status_code for path in sys.argv[1:]])"
    )
    (container,) = documents("kubernetes.yaml")[0]["spec"]["template"]["spec"]["containers"]
    paths = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
    paths.append(documents("prometheus.yml")[0]["scrape_configs"][0]["metrics_path"])
    asked = subprocess.run(
        [sys.executable, "-c", program, *paths],
        cwd=SERVICE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert asked.stdout == "[200, 200, 200, 200]\n", asked.stderr


def test_a_stop_has_time_enough():
    """A server waits longer than a request may take; Kubernetes and Docker wait for the server."""
    pod = documents("kubernetes.yaml")[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    command = (SERVICE / "Dockerfile").read_text().rpartition("CMD ")[2]
    words = ast.literal_eval(command)
    graceful = int(words[words.index("--timeout-graceful-shutdown") + 1])
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert graceful > float(environment["REQUEST_TIMEOUT"])
    assert pod["terminationGracePeriodSeconds"] > pause + graceful
    (compose,) = documents("compose.yaml")
    assert int(compose["services"]["shop"]["stop_grace_period"].removesuffix("s")) > graceful


def test_all_replicas_together_fit_the_database():
    """PostgreSQL's default is 100 connections, three of them reserved."""
    deployment = documents("kubernetes.yaml")[0]["spec"]
    (container,) = deployment["template"]["spec"]["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    replicas = deployment["replicas"] + deployment["strategy"]["rollingUpdate"]["maxSurge"]
    assert replicas * (int(environment["DB_POOL_SIZE"]) + int(environment["DB_MAX_OVERFLOW"])) <= 97
