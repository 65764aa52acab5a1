"""A service whose clients leave. The path begins with ``safe``, ``all`` or ``off``: whose work ends then.

Environment: ``URLS`` is a JSON object of SQLAlchemy's URLs by driver, ``REDIS`` the port of a Redis.

| path | |
|---|---|
| ``/statement/{driver}`` | one statement of a minute |
| ``/write/{driver}`` | inserts the query's number, waits ``seconds`` in a statement, commits |
| ``/commit/{driver}`` | inserts the query's number into a table whose COMMIT takes a second or more |
| ``/stream/{driver}`` | sends a piece, then runs a statement of a minute in the body |
| ``/redis`` | a command that takes as long as its server is frozen |
| ``/call`` | a guarded call of a minute, without a database |
| ``/figures`` | what is inside, by guard |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os

import asyncpg
import psycopg_pool
import redis.asyncio
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import BreakerPolicy, Guard, RejectedError, guarded, protect
from guardrails.integrations.asgi import GuardrailsMiddleware

URLS = json.loads(os.environ["URLS"])
PLAIN = URLS["psycopg"].replace("+psycopg", "")
QUIET = BreakerPolicy(minimum_number_of_calls=10_000, slow_call_duration_threshold=1000)
IN_THREADS = {"psycopg", "psycopg2", "pymysql"}
SLEEP = {True: "select pg_sleep({:g})", False: "select sleep({:g})"}
USUAL: dict = {"timeout": 40, "max_wait_duration": 20, "breaker": QUIET}
"""For every guard. Many clients at once are refused when their queue has been standing for 0.3 s."""
OPTIONS = {"pool_size": 3, "max_overflow": 0}

engines = {
    name: (create_engine if name in IN_THREADS else create_async_engine)(
        url, **OPTIONS, connect_args={"ssl_disabled": True} if name == "pymysql" else {}
    )
    for name, url in URLS.items()
}
guards = {name: protect(engine, name=name, **USUAL) for name, engine in engines.items()}
search = guards["search"] = Guard(
    "search", max_concurrent_calls=3, timeout=40, max_wait_duration=20, breaker=QUIET
)
pools = {}
told = []


async def start():
    """Makes what belongs to the event loop."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(str(context)))
    pools["asyncpg.Pool"] = await asyncpg.create_pool(PLAIN, min_size=1, max_size=3)
    pools["psycopg_pool"] = psycopg_pool.AsyncConnectionPool(PLAIN, min_size=1, max_size=3, open=False)
    await pools["psycopg_pool"].open()
    pools["redis"] = redis.asyncio.Redis(port=int(os.environ["REDIS"]), max_connections=3)
    for name, pool in pools.items():
        guards[name] = protect(pool, name=name, **USUAL)


def sleep_in(driver, seconds):
    """A statement in the words of the driver's server."""
    return SLEEP["postgresql" in URLS.get(driver, "postgresql")].format(seconds)


# --- work: the same steps in a thread, in a task, and on a pool without SQLAlchemy --------------------


def in_thread(driver, statements, values):
    with engines[driver].begin() as connection:
        for statement in statements:
            connection.execute(text(statement), values)


async def in_task(driver, statements, values):
    if driver == "asyncpg.Pool":
        async with pools[driver].acquire() as connection, connection.transaction():
            for statement in statements:
                await connection.execute(statement.replace(":number", "$1"), *_used(statement, values))
    elif driver == "psycopg_pool":
        async with pools[driver].connection() as connection:
            for statement in statements:
                await connection.execute(statement.replace(":number", "%s"), _used(statement, values) or None)
    else:
        async with engines[driver].begin() as connection:
            for statement in statements:
                await connection.execute(text(statement), values)


def _used(statement, values):
    return list(values.values()) if ":number" in statement else []


def application():  # noqa: C901 - its routes
    """The routes, for one middleware."""
    app = FastAPI()

    def steps(path, driver, number, seconds):
        if path == "statement":
            return [sleep_in(driver, seconds)]
        insert = f"insert into {'dawdling' if path == 'commit' else 'written'} values (:number)"
        return [insert] if path == "commit" else [insert, sleep_in(driver, seconds)]

    @app.api_route("/threads/{path}/{driver}", methods=["GET", "POST"])
    def thread(path: str, driver: str, number: int = 0, seconds: float = 60) -> str:
        in_thread(driver, steps(path, driver, number, seconds), {"number": number})
        return "done"

    @app.api_route("/tasks/{path}/{driver}", methods=["GET", "POST"])
    async def task(path: str, driver: str, number: int = 0, seconds: float = 60) -> str:
        await in_task(driver, steps(path, driver, number, seconds), {"number": number})
        return "done"

    @app.get("/stream/{driver}")
    async def stream(driver: str) -> StreamingResponse:
        def pieces():
            yield b"piece"
            with contextlib.suppress(RejectedError):
                in_thread(driver, [sleep_in(driver, 60)], {})

        async def async_pieces():
            yield b"piece"
            with contextlib.suppress(RejectedError):  # it is too late for a 503, so the server would log it
                await in_task(driver, [sleep_in(driver, 60)], {})

        return StreamingResponse(pieces() if driver in IN_THREADS else async_pieces())

    @app.get("/redis")
    async def redis_command() -> str:
        return str(await pools["redis"].get("key"))

    @app.get("/call")
    @guarded(search)
    async def call() -> str:
        await asyncio.sleep(60)
        return "done"

    @app.post("/upload")
    async def upload(request: Request, seconds: float = 0) -> dict[str, object]:
        pieces = []
        async for piece in request.stream():
            pieces.append(piece)
            await asyncio.sleep(seconds)
        return {"sent": b"".join(pieces).decode()}

    @app.get("/figures")
    async def figures() -> dict[str, object]:
        shown = {}
        for name, guard in guards.items():
            seen = guard.snapshot()
            shown[name] = {
                "in_use": seen.in_use,
                "state": seen.state,
                "failed": seen.failed,
                "abandoned": seen.abandoned,
                "slow": seen.slow,
                "rejected": sum(seen.rejected.values()),
            }
        return {
            "guards": shown,
            "tasks": len(asyncio.all_tasks()),
            "told": told,
            "disconnects": {name: each.disconnects for name, each in served.items()},
        }

    return app


served = {}


class _Service:
    """Each middleware around the same routes, told apart by the path's first part."""

    def __init__(self):
        for name, value in {"off": False, "safe": True, "all": "all"}.items():
            served[name] = GuardrailsMiddleware(application(), cancel_on_disconnect=value)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await start()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        name, _, path = scope["path"].removeprefix("/").partition("/")
        await served[name]({**scope, "path": f"/{path}"}, receive, send)


app = _Service()
