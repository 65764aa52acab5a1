"""A WSGI application for ``gunicorn --preload``: its guards are made, used and full before the fork."""

from __future__ import annotations

import json
import os
import threading
import time

from guardrails import BreakerPolicy, CircuitBreaker, Guard
from guardrails.integrations.wsgi import GuardrailsMiddleware

shop = Guard(
    "shop", max_concurrent_calls=2, max_wait_duration=60, breaker=BreakerPolicy(consecutive_failures=3)
)
part = shop.compartment("part", max_concurrent_calls=2)
breaker = CircuitBreaker(fail_max=3)


def _fill():
    """Both slots are taken and somebody waits, in threads that the workers will not have."""
    calls = [lambda: part.run(time.sleep, 600)] * 2 + [lambda: shop.run(int)]
    for call in calls:
        threading.Thread(target=call, daemon=True).start()
    while shop.snapshot().in_use < 2 or shop.snapshot().waiting < 1:
        time.sleep(0.01)


_fill()


def application(environ, start_response):
    """``/`` shows this worker's guard, ``/use`` fills it and empties it, ``/open`` opens its circuit."""
    if environ["PATH_INFO"] == "/use":
        with part.call(), shop.call():
            breaker.call(int)
    elif environ["PATH_INFO"] == "/open":
        shop.force_open()
    now = shop.snapshot()
    body = json.dumps(
        {
            "pid": os.getpid(),
            "in_use": now.in_use,
            "waiting": now.waiting,
            "oldest": now.oldest_in_flight,
            "state": now.state,
            "part": part.snapshot().in_use,
        }
    ).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


app = GuardrailsMiddleware(application, guards=[shop])
