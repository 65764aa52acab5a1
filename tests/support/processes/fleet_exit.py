"""DATABASE FLEET: a worker that ends with a line of input, or with SIGTERM as servers handle it."""

from __future__ import annotations

import signal
import sys

from sqlalchemy import create_engine, text

from guardrails import protect
from guardrails.fleet import Fleet

database, path = sys.argv[1:]
engine = create_engine(f"sqlite:///{database}", pool_size=8, max_overflow=0)
fleet = Fleet(f"sqlite:///{path}", name="shop", worker_id="web")
protect(engine, fleet=fleet.budget("db", connections=8))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with engine.connect() as connection:
    connection.execute(text("select 1"))
print("ready", flush=True)
sys.stdin.readline()
