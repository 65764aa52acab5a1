"""A service that asks its database one question while it is imported, and then is forked by uWSGI."""

from __future__ import annotations

import json
import os
import time

from sqlalchemy import create_engine

from guardrails import CallTimeoutError, protect

engine = create_engine(os.environ["SHOP_DATABASE"], pool_size=2, max_overflow=0)
db = protect(engine, timeout=1.0)
with engine.connect() as connection:
    connection.exec_driver_sql("select 1")
    engine.dispose()
    if os.environ.get("SHOP_HOLDS"):
        held = engine.connect()  # for ever: its slot is the master's


def application(environ, start_response):
    """``/`` waits for a statement that takes five seconds, ``/slots`` says how many slots are taken."""
    began, told = time.monotonic(), "ended"
    if environ["PATH_INFO"] == "/":
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("select pg_sleep(5)")
        except CallTimeoutError:
            told = "stopped"
    body = json.dumps({"pid": os.getpid(), "told": told, "seconds": time.monotonic() - began})
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body.encode()]
