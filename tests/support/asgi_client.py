"""A server of one request, in process: it shows what an ASGI application sent, and what it raised."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field


def http(path="/", *, method="GET", headers=(), **more):
    """The scope of an HTTP request."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 50_000),
        "headers": [(name.encode(), _bytes(value)) for name, value in headers],
    }
    return scope | more


def websocket(path="/", *, denial=True):
    """The scope of a websocket handshake."""
    extensions = {"websocket.http.response": {}} if denial else {}
    return http(path, type="websocket", scheme="ws", extensions=extensions, subprotocols=[])


def _bytes(value):
    return value if isinstance(value, bytes) else value.encode("latin-1")


@dataclass
class Exchange:
    """What happened to one request."""

    sent: list = field(default_factory=list)
    raised: BaseException | None = None
    received: int = 0

    @property
    def starts(self):
        return [message for message in self.sent if message["type"].endswith("response.start")]

    @property
    def status(self):
        assert len(self.starts) == 1, f"{len(self.starts)} answers: {self.sent}"
        return self.starts[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.starts[0]["headers"]}

    @property
    def body(self):
        return b"".join(
            message.get("body", b"") for message in self.sent if message["type"].endswith("response.body")
        )

    @property
    def problem(self):
        assert self.headers["content-type"] == "application/problem+json"
        assert int(self.headers["content-length"]) == len(self.body)
        return json.loads(self.body)


async def serve(app, scope=None, *, incoming=None, on_send=None):
    """Serves one request. When the ``incoming`` messages have run out, ``receive`` waits."""
    seen = Exchange()
    if incoming is None:
        incoming = [{"type": "http.request", "body": b"", "more_body": False}]
    incoming = list(incoming)

    async def receive():
        seen.received += 1
        if incoming:
            return incoming.pop(0)
        await asyncio.Event().wait()

    async def send(message):
        seen.sent.append(message)
        if on_send is not None:
            await on_send(message)

    try:
        await app(http() if scope is None else scope, receive, send)
    except BaseException as error:
        seen.raised = error
        if isinstance(error, asyncio.CancelledError):
            raise
    return seen


def ask(app, scope=None, **script):
    """Serves one request on a loop of its own."""
    return asyncio.run(serve(app, scope, **script))


async def start(app, scope=None, **script):
    """Begins to serve a request and returns its task, once the application has had the loop."""
    task = asyncio.create_task(serve(app, scope, **script))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def cancel(task):
    """Cancels a request, as a server does that shuts down."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


START = {"type": "http.response.start", "status": 200, "headers": []}
CHUNK = {"type": "http.response.body", "body": b"part", "more_body": True}
END = {"type": "http.response.body", "body": b"end"}


async def fine(_scope, _receive, send):
    """Answers 200."""
    await send(dict(START))
    await send(dict(END))


def raising(error, *before):
    """An application that sends something and then raises."""

    async def app(_scope, _receive, send):
        for message in before:
            await send(message)
        raise error

    return app
