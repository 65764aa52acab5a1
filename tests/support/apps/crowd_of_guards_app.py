"""A status page of a thousand guards, one of them open."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Mount

from guardrails import Guard
from guardrails.integrations.starlette import status_app

guards = [Guard(f"guard-{number}", max_concurrent_calls=2) for number in range(1000)]
guards[777].force_open()

app = Starlette(routes=[Mount("/internal", status_app(guards))])
