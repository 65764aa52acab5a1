"""A status page of a guard whose slots are full, so that it refuses calls with a closed circuit."""

from __future__ import annotations

import contextlib
import threading
import time

from starlette.applications import Starlette
from starlette.routing import Mount

from guardrails import Guard, RejectedError
from guardrails.integrations.starlette import status_app

orders = Guard("orders", max_concurrent_calls=2, max_wait_duration=0.0, max_waiting=0)
mail = Guard("mail", max_concurrent_calls=5)


def crowd():
    """Five callers for two slots."""
    while True:
        with contextlib.suppress(RejectedError):
            orders.run(time.sleep, 0.02)
        mail.run(time.sleep, 0.005)


for _ in range(5):
    threading.Thread(target=crowd, daemon=True).start()

app = Starlette(routes=[Mount("/internal", status_app([orders, mail]))])
