"""A status page of guards in shadow that would refuse calls, and of one whose compartment refuses."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress

from starlette.applications import Starlette
from starlette.routing import Mount

from guardrails import Guard, RejectedError
from guardrails.integrations.starlette import status_app

NARROW = {"max_concurrent_calls": 1, "max_wait_duration": 0.0, "max_waiting": 0}

orders = Guard("orders-db", mode="shadow", **NARROW)
stock = Guard("stock-db", mode="shadow", **NARROW)
mail = Guard("mail", max_concurrent_calls=5)
letters = mail.compartment("letters", max_concurrent_calls=1, max_wait_duration=0.0)


def call_at_once(guard, number):
    """Makes calls of which each begins while the ones before it are running."""
    with ExitStack() as held:
        for _ in range(number):
            with suppress(RejectedError):
                held.enter_context(guard.call())


def keep_calling():
    """Of five calls at once, one has a slot: four would be refused, or are."""
    while True:
        call_at_once(stock, 5)
        call_at_once(letters, 5)
        time.sleep(0.02)


call_at_once(orders, 5)
threading.Thread(target=keep_calling, daemon=True).start()

app = Starlette(routes=[Mount("/internal", status_app([orders, stock, mail]))])
