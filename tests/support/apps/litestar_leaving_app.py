"""A Litestar app whose clients leave. The path begins with the middleware's place, ``inside`` or ``around``.

Environment: ``URL`` is an SQLAlchemy URL of PostgreSQL without a driver.

| path | |
|---|---|
| ``/task`` | a statement of a minute in a task |
| ``/thread`` | the same in a thread |
| ``/stream`` | the same in the body |
| ``/write`` | a POST: writes, waits ``seconds`` in a statement, commits |
| ``/figures`` | what is inside |
"""

from __future__ import annotations

import os

from litestar import Litestar, get, post
from litestar.middleware import DefineMiddleware
from litestar.response import Stream
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import BreakerPolicy, protect
from guardrails.integrations.asgi import GuardrailsMiddleware

SLEEP = text("select pg_sleep(60)")

engine = create_async_engine(os.environ["URL"].replace("://", "+asyncpg://"), pool_size=3, max_overflow=0)
in_threads = create_engine(os.environ["URL"].replace("://", "+psycopg://"), pool_size=3, max_overflow=0)
patient = BreakerPolicy(slow_call_duration_threshold=1000)
guards = [
    protect(each, name=name, timeout=40, breaker=patient)
    for name, each in {"tasks": engine, "threads": in_threads}.items()
]


@get("/task")
async def task() -> str:
    async with engine.connect() as connection:
        await connection.execute(SLEEP)
    return "done"


@get("/thread", sync_to_thread=True)
def thread() -> str:
    with in_threads.connect() as connection:
        connection.execute(SLEEP)
    return "done"


@get("/stream")
async def stream() -> Stream:
    async def pieces():
        yield b"piece"
        await task.fn()

    return Stream(pieces())


@post("/write")
async def write(number: int, seconds: float) -> str:
    async with engine.begin() as connection:
        await connection.execute(text("insert into litestar_writes values (:number)"), {"number": number})
        await connection.execute(text("select pg_sleep(:seconds)"), {"seconds": seconds})
    return "done"


@get("/figures")
async def figures() -> dict[str, dict[str, int]]:
    seen = {guard.name: guard.snapshot() for guard in guards}
    return {
        name: {"in_use": each.in_use, "failed": each.failed, "slow": each.slow, "abandoned": each.abandoned}
        for name, each in seen.items()
    }


routes = [task, thread, stream, write, figures]
options = {"guards": guards, "cancel_on_disconnect": True}
around = GuardrailsMiddleware(Litestar(routes, openapi_config=None), **options)
inside = Litestar(routes, middleware=[DefineMiddleware(GuardrailsMiddleware, **options)], openapi_config=None)


async def app(scope, receive, send):
    """Both, told apart by the path's first part."""
    if scope["type"] == "lifespan":
        await inside(scope, receive, send)
        return
    name, _, path = scope["path"].removeprefix("/").partition("/")
    rest = {"path": f"/{path}", "raw_path": f"/{path}".encode()}
    await {"around": around, "inside": inside}[name]({**scope, **rest}, receive, send)
