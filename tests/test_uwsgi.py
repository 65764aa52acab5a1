"""uWSGI, which forks its workers in C and runs none of Python's at-fork hooks unless it is told to."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.request

import pytest
from verbs import wait_until

from guardrails.testing._ground import free_port
from guardrails.testing._processes import end
from guardrails.testing.servers import PostgresServer

PROCESSES = pathlib.Path(__file__).parent / "processes"
UWSGI = shutil.which("uwsgi", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")

pytestmark = [
    pytest.mark.skipif(UWSGI is None, reason="uwsgi is not installed"),
    pytest.mark.timeout(180),
]


@pytest.fixture(scope="module")
def postgres():
    """A server of the module's own."""
    with PostgresServer.start() as server:
        yield server


WITH_HOOKS = pytest.param(
    "with hooks",
    marks=pytest.mark.skipif(
        sys.version_info >= (3, 13),
        reason="uWSGI's own hook aborts any worker on Python 3.13",
    ),
)


@pytest.fixture(params=["without hooks", WITH_HOOKS, "slot held by the master"])
def shop(request, postgres, tmp_path):
    """The port of a uWSGI with two workers, forked after the application has used its database."""
    port, log = free_port(), tmp_path / "log"
    words = [UWSGI, "--master", "--processes", "2", "--enable-threads", "--http-socket", f"127.0.0.1:{port}"]
    words += ["--wsgi-file", str(PROCESSES / "uwsgi_shop.py"), "--die-on-term", "--need-app"]
    words += ["--py-call-osafterfork"] if request.param == "with hooks" else []
    package = pathlib.Path(__file__).parents[1]
    environment = {
        **os.environ,
        "SHOP_DATABASE": postgres.url("psycopg"),
        "SHOP_HOLDS": "1" if "slot" in request.param else "",
        "PYTHONPATH": os.pathsep.join([str(package), *sys.path]),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, env=environment)
    try:
        wait_until(lambda: answers(port) or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        end(process.pid, signal.SIGTERM)
        process.wait(20)


def ask(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return json.load(answer)


def answers(port):
    try:
        return ask(port, "/slots")
    except OSError:
        return None


def test_a_statement_is_stopped_in_every_worker(shop):
    """Although the thread that watches deadlines was the master's."""
    workers = set()
    for _ in range(12):
        answer = ask(shop, "/")
        assert answer["told"] == "stopped"
        assert 0.9 < answer["seconds"] < 2.5
        workers.add(answer["pid"])
        if len(workers) == 2:
            break
