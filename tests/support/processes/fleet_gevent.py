"""DATABASE FLEET: a worker under gevent: the first caller waits, greenlets run on, the lease is renewed."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
from sqlalchemy import create_engine, text  # noqa: E402

from guardrails import protect  # noqa: E402
from guardrails.fleet import Fleet  # noqa: E402
from guardrails.fleet._lease import members  # noqa: E402
from guardrails.fleet._sqlite_store import SQLiteStore  # noqa: E402

database, path = sys.argv[1:]
engine = create_engine(f"sqlite:///{database}", pool_size=8, max_overflow=0)
fleet = Fleet(f"sqlite:///{path}", name="shop")
protect(engine, fleet=fleet.budget("db", connections=8))
beats = []


def beat():
    while True:
        beats.append(time.monotonic())
        gevent.sleep(0.02)


beating = gevent.spawn(beat)
with engine.connect() as connection:
    print("first", connection.scalar(text("select 1")) == 1)
gevent.sleep(2.5)
print("beats", len(beats) > 20)
view = SQLiteStore(path, "shop").read()
(record,) = members(view.budgets["shop", "db"], view.now).values()
print("renewed", record.seq >= 2, flush=True)
beating.kill()
engine.dispose()
