"""gunicorn with uvicorn's workers: ``gunicorn shop.main:app``. Each worker has its own pool and guards."""

from __future__ import annotations

import os

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker
from prometheus_client import multiprocess

bind = os.environ.get("BIND", "0.0.0.0:8000")
worker_class = "uvicorn_worker.UvicornWorker"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))

# The modules are imported once, before the workers are forked. The engine opens nothing until a worker uses
# it, so no connection is shared. A fault of an import stops the start, not each worker again and again.
preload_app = True

# A worker whose event loop stands still for so long is killed. A slow database does not stop it.
timeout = 30

# At a stop, requests under way have so long to end: REQUEST_TIMEOUT and a second. Kubernetes waits longer:
# terminationGracePeriodSeconds.
graceful_timeout = 6

# Idle connections of the load balancer: longer than its own limit, or it sends requests into a closed one.
keepalive = 75


def child_exit(_server: Arbiter, worker: Worker) -> None:
    """Tells prometheus-client that a worker has ended, where PROMETHEUS_MULTIPROC_DIR is set."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
