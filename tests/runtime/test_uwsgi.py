"""uWSGI, which forks its workers in C and runs none of Python's at-fork hooks unless it is told to."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig

import pytest

from guardrails.testing.servers import PostgresServer
from support.paths import PROCESSES, python_path
from support.server_process import Server

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
    """A uWSGI with two workers, forked after the application has used its database."""
    words = [UWSGI, "--master --processes 2 --enable-threads --http-socket 127.0.0.1:{port}"]
    words += ["--wsgi-file uwsgi_shop.py --die-on-term --need-app"]
    words += ["--py-call-osafterfork"] if request.param == "with hooks" else []
    environ = {
        "SHOP_DATABASE": postgres.url("psycopg"),
        "SHOP_HOLDS": "1" if "slot" in request.param else "",
        "PYTHONPATH": python_path(*sys.path),  # uWSGI knows nothing of a virtual environment
    }
    with Server("uwsgi", " ".join(words), tmp_path / "log", environ, PROCESSES) as server:
        yield server.wait("/slots")


@pytest.mark.slow
@pytest.mark.sampled(1)
def test_a_statement_is_stopped_in_every_worker(shop):
    """Although the thread that watches deadlines was the master's."""
    workers = set()
    for _ in range(12):
        answer = shop.ask("/")
        assert answer["told"] == "stopped"
        assert 0.9 < answer["seconds"] < 2.5
        workers.add(answer["pid"])
        if len(workers) == 2:
            break
