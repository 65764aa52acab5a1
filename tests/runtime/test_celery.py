"""Celery's prefork workers, for real: the guard of a parent process works in its children."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import subprocess
import sys

import pytest

from guardrails import CallTimeoutError, CircuitOpenError
from guardrails.testing._processes import end
from guardrails.testing.servers import PostgresServer, ValkeyServer
from support.paths import PROCESSES

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("celery"), reason="celery is not installed")


@pytest.fixture(scope="module", params=["psycopg", "psycopg2"])
def tasks(request, tmp_path_factory):
    """The tasks of an application whose two workers run, sent from this process."""
    log = tmp_path_factory.mktemp("celery") / "log"
    with PostgresServer.start(max_connections=20) as database, ValkeyServer.start() as broker:
        settings = {"BROKER": broker.url(), "DATABASE": database.url(request.param)}
        words = "celery -A celery_shop worker --pool prefork --concurrency 2 --loglevel INFO --without-mingle"
        with log.open("w") as written:
            worker = subprocess.Popen(
                [sys.executable, "-m", *words.split()],
                cwd=PROCESSES,
                env=os.environ | settings,
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        try:
            from celery import Celery  # noqa: PLC0415

            app = Celery("shop", broker=broker.url(), backend=broker.url(), set_as_current=False)
            yield lambda name, *args: app.send_task(f"celery_shop.{name}", args)
            # Results are in circles and unsubscribe when they are collected, for which they need the server.
            gc.collect()
            app.backend.result_consumer.stop()
            app.backend.client.connection_pool.disconnect()
            app.close()
        finally:
            end(worker.pid, signal.SIGTERM)
            worker.wait(10)


def test_deadlines_hold_in_forked_workers(tasks):
    """Each worker has a watchdog of its own, though its parent had one before the fork."""
    seen = [result.get(timeout=60) for result in [tasks("look") for _ in range(6)]]
    assert {kind for _, kind, _, _ in seen} == {"CallTimeoutError"}
    assert all(0.9 < seconds < 3 for _, _, seconds, _ in seen)
    assert {in_use for *_, in_use in seen} == {0}
    assert len({pid for pid, *_ in seen}) == 2


@pytest.mark.slow
def test_errors_reach_the_caller_with_their_type_and_attributes(tasks):
    """The result backend keeps a class and its ``args``, and builds the error again."""
    with pytest.raises(CallTimeoutError) as stopped:
        tasks("sleep", 5).get(timeout=60)
    assert (stopped.value.guard, stopped.value.timeout) == ("orders", 1.0)
    with pytest.raises(CircuitOpenError) as refused:
        tasks("refuse").get(timeout=60)
    assert (refused.value.guard, refused.value.reason) == ("orders", "circuit_open")
