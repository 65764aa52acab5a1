"""DATABASE FLEET: a parent that is a worker, two children that are others; all end on a line of input."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from sqlalchemy import create_engine, text

from guardrails import protect
from guardrails.fleet import Fleet

database, path = sys.argv[1:]
end = Path(f"{path}.end")
engine = create_engine(f"sqlite:///{database}", pool_size=8, max_overflow=0)
fleet = Fleet(f"sqlite:///{path}", name="shop", worker_id="web")
protect(engine, fleet=fleet.budget("db", connections=8))


def work():
    with engine.connect() as connection:
        connection.execute(text("select 1"))


work()
engine.dispose()
print("parent", 1, flush=True)
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        work()
        while os.getppid() != 1:
            time.sleep(0.05)
            if end.exists():
                sys.exit(0)
        sys.exit(1)
    children.append(child)
sys.stdin.readline()
end.touch()
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(max(codes))
