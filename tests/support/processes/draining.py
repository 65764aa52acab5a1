"""An ASGI application with one slot, to be stopped while one request is inside and others wait."""

from __future__ import annotations

import asyncio
import json

from guardrails import Guard

shop = Guard("shop", max_concurrent_calls=1, max_wait_duration=60, max_waiting=10, timeout=60)


async def app(scope, receive, send):
    """``/slow`` takes a slot for a while; ``/`` says who is inside and who waits."""
    if scope["path"] == "/slow":
        await shop.run_async(asyncio.sleep, 0.5)
    now = shop.snapshot()
    body = json.dumps({"in_use": now.in_use, "waiting": now.waiting}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
