"""A WSGI service with ten slots, each taken for half a second, for people and for batches.

| path | |
|---|---|
| ``/query`` | what a person waits for |
| ``/batch`` | the same work, of class ``SHEDDABLE`` |
| ``/figures`` | what is inside now |
"""

from __future__ import annotations

import json
import time

from guardrails import Guard
from guardrails.integrations.wsgi import GuardrailsMiddleware

SLOTS, SECONDS = 10, 0.5

work = Guard("work", max_concurrent_calls=SLOTS, max_wait_duration=1.0, breaker=None)


def app(environ, start_response):
    """Does the work, or says how much of it there is."""
    if environ["PATH_INFO"] == "/figures":
        seen = work.snapshot()
        body = json.dumps(
            {"in_use": seen.in_use, "waiting": seen.waiting, "in_flight": wsgi.in_flight}
        ).encode()
    else:
        work.run(time.sleep, SECONDS)
        body = b"fine"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


wsgi = GuardrailsMiddleware(
    app,
    guards=[work],
    criticality={"/batch": "SHEDDABLE"},
    exempt=["/figures"],
    max_in_flight=1000,
    threads=32,
)
