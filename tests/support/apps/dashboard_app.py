"""A status page with something on it: a guard that has refused, an open circuit, a hostile name."""

from __future__ import annotations

import contextlib

from starlette.applications import Starlette
from starlette.routing import Mount

from guardrails import Guard, RejectedError
from guardrails.integrations.starlette import status_app

HOSTILE = "</script><img src=x onerror=document.title='lost'>"

db, cache, hostile = (Guard(name, max_concurrent_calls=2) for name in ("orders-db", "cache", HOSTILE))
db.compartment("reports")
twin = Guard("orders-db", max_concurrent_calls=3)
cache.force_open()
for _ in range(3):
    with contextlib.suppress(RejectedError):
        cache.run(int)

app = Starlette(routes=[Mount("/internal", status_app([db, cache, hostile, twin]))])
