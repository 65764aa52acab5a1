"""A Celery application whose engine was guarded and used before its workers were forked."""

from __future__ import annotations

import os
import time

from celery import Celery
from sqlalchemy import create_engine, text

from guardrails import protect

app = Celery("shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    result_expires=60,
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
)

engine = create_engine(os.environ["DATABASE"], pool_size=2, max_overflow=0)
db = protect(engine, name="orders", timeout=1.0)
with engine.connect() as before_the_fork:
    before_the_fork.execute(text("select 1"))
engine.dispose()


@app.task
def sleep(seconds):
    """Runs one long statement."""
    with engine.connect() as connection:
        connection.execute(text("select pg_sleep(:seconds)"), {"seconds": seconds})


@app.task
def refuse():
    """Asks a guard that refuses everything."""
    db.force_open()
    try:
        with engine.connect():
            pass
    finally:
        db.reset()


@app.task
def look():
    """Returns this worker's process, and how long a statement takes that its deadline stops."""
    started = time.monotonic()
    try:
        sleep(5)
    except Exception as error:
        return os.getpid(), type(error).__name__, time.monotonic() - started, db.snapshot().in_use
    return os.getpid(), None, time.monotonic() - started, db.snapshot().in_use
