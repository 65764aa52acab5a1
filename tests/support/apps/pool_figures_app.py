"""A WSGI application on a guarded pool, with the metrics of all its processes.

``/work`` holds a connection for `HOLD` seconds. It answers with its process and what the caller measured: the
seconds of waiting and holding, or that it was refused. ``/internal/`` has the status application's pages.
"""

from __future__ import annotations

import json
import os
import time

from sqlalchemy import create_engine, text
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from guardrails import BulkheadFullError, protect
from guardrails.integrations import wsgi

HOLD = 0.05

engine = create_engine(os.environ["DATABASE_URL"], pool_size=2, max_overflow=1)
db = protect(engine, name="orders")


def work(environ, start_response):
    asked = time.monotonic()
    measured = {"pid": os.getpid()}
    try:
        with engine.connect() as connection:
            got = time.monotonic()
            connection.execute(text("select 1"))
            time.sleep(HOLD)
        measured |= {"wait": got - asked, "hold": time.monotonic() - got}
    except BulkheadFullError:
        measured["refused"] = True
    body = json.dumps(measured).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


application = DispatcherMiddleware(work, {"/internal": wsgi.status_app([db])})
