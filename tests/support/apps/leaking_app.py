"""A status page of a pool whose connections a thread has kept and not returned."""

from __future__ import annotations

import threading

from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool
from starlette.applications import Starlette
from starlette.routing import Mount

from guardrails import protect
from guardrails.integrations.starlette import status_app

engine = create_engine("sqlite://", poolclass=QueuePool, connect_args={"check_same_thread": False})
db = protect(engine, name="<img src=x onerror=document.title='lost'>")
kept = []


def forget():
    """Takes a connection and keeps it."""
    connection = engine.connect()
    connection.execute(text("SELECT 1"))
    kept.append(connection)


for _ in range(2):
    thread = threading.Thread(target=forget)
    thread.start()
    thread.join()

app = Starlette(routes=[Mount("/internal", status_app([db]))])
