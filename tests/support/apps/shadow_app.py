"""A status page of a guard in shadow that would have refused some calls, and of one that enforces."""

from __future__ import annotations

from contextlib import ExitStack

from starlette.applications import Starlette
from starlette.routing import Mount

from guardrails import Guard
from guardrails.integrations.starlette import status_app

orders = Guard("orders-db", max_concurrent_calls=1, max_wait_duration=0.0, max_waiting=0, mode="shadow")
mail = Guard("mail", max_concurrent_calls=5)
with ExitStack() as held:
    for _ in range(5):
        held.enter_context(orders.call())

app = Starlette(routes=[Mount("/internal", status_app([orders, mail]))])
