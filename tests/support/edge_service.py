"""A small service in a process of its own, for tests and benchmarks of the edge.

It has ``/query`` and ``/batch`` (take a connection and so many seconds), ``/stream`` (sends rows for ever)
and ``/health`` (needs no database), as thread endpoints or as coroutines; ``/busy`` (answers 503 and does
nothing else: what a refusal costs without us); and ``/sleep`` (as long as a query, in a guard of its own with
as many slots, and with next to no work for the processor).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import uvicorn
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from guardrails import Guard, protect
from guardrails.integrations.asgi import GuardrailsMiddleware

SLEEP = text("select pg_sleep(:seconds)")


def build(settings):
    """The application, with as much of a guard as the settings say."""
    on_loop = settings["endpoints"] == "async"
    make = create_async_engine if on_loop else create_engine
    engine = make(settings["url"], pool_size=settings["pool"], max_overflow=0, pool_timeout=1)
    db = None if settings["guard"] is None else protect(engine, name="db", **settings["guard"])
    query = query_on_loop(engine, settings) if on_loop else query_in_thread(engine, settings)
    sleepers = Guard("sleepers", max_concurrent_calls=settings["pool"])
    routes = [Route("/query", query), Route("/batch", query), Route("/health", health), Route("/busy", busy)]
    app = inside = Starlette(routes=[*routes, Route("/sleep", sleep(sleepers, settings))])
    if db is not None:
        policy = (
            {"learn_routes": False} if settings["edge"] is None else _policy(settings["edge"], db, sleepers)
        )
        app = GuardrailsMiddleware(inside, **policy)
    routes = [Route("/stream", stream(engine)), Route("/lab", lab(engine, db, app))]
    inside.router.routes.extend(routes)
    return app


def query_in_thread(engine, settings):
    def query(request):
        with engine.connect() as connection:
            connection.execute(SLEEP, _asked(request, settings))
        return PlainTextResponse("fine")

    return query


def query_on_loop(engine, settings):
    async def query(request):
        async with engine.connect() as connection:
            await connection.execute(SLEEP, _asked(request, settings))
        return PlainTextResponse("fine")

    return query


def _asked(request, settings):
    return {"seconds": float(request.query_params.get("seconds", settings["query"]))}


def sleep(guard, settings):
    """What a query is to the guard, without the query."""

    async def endpoint(request):
        await guard.run_async(asyncio.sleep, _asked(request, settings)["seconds"])
        return PlainTextResponse("fine")

    return endpoint


def stream(engine):
    """Rows for ever, from one connection."""

    async def rows():
        async with engine.connect() as connection:
            while True:
                await connection.execute(SLEEP, {"seconds": 0.05})
                yield b"row\n"

    async def endpoint(_request):
        return StreamingResponse(rows())

    return endpoint


def health(_request):
    """Takes a thread, and no connection."""
    return PlainTextResponse("fine")


async def busy(_request):
    """What an endpoint does that refuses by itself."""
    return PlainTextResponse("busy", 503)


def lab(engine, db, app):
    """How much is held, by the guard's word and by the pool's, and what it all cost."""

    async def endpoint(_request):
        seen = None if db is None else db.snapshot()
        guarded = (
            {}
            if seen is None
            else {
                "in_use": seen.in_use,
                "waiting": seen.waiting,
                "state": seen.state,
                "failed": seen.failed,
                "in_flight": app.in_flight,
            }
        )
        return JSONResponse(
            guarded
            | {
                "checked_out": getattr(engine, "sync_engine", engine).pool.checkedout(),
                "tasks": len(asyncio.all_tasks()),
                "kilobytes": _resident(),
                "cpu": time.process_time(),
            }
        )

    return endpoint


def _policy(options, db, sleepers):
    declared = options.pop("requires", None)
    if declared:
        options["requires"] = {path: [db] for path in declared} | {"/sleep": [sleepers]}
    return {"guards": [db, sleepers], "max_in_flight": 5000, "exempt": ["/lab", "/health"], **options}


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def main():
    """Serves on an inherited socket until standard input ends."""
    settings = json.loads(sys.argv[1])
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with socket.socket(fileno=settings["socket"]) as listener:
        config = uvicorn.Config(
            build(settings),
            log_level="critical",
            access_log=False,
            http=settings["http"],
            loop=settings["loop"],
            lifespan="off",
        )
        uvicorn.Server(config).run(sockets=[listener])


def _leave_with_parent():
    while os.read(0, 1):
        pass
    os._exit(0)


@contextlib.contextmanager
def service(url, **settings):
    """Runs the service and yields its address; afterwards the process is gone."""
    chosen = {
        "url": url,
        "endpoints": "sync",
        "pool": 5,
        "query": 0.05,
        "guard": {},
        "edge": {"requires": ["/query"]},
        "http": "httptools",
        "loop": "asyncio",
    }
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        argument = json.dumps(chosen | settings | {"socket": listener.fileno()})
        process = subprocess.Popen(
            [sys.executable, __file__, argument], stdin=subprocess.PIPE, pass_fds=[listener.fileno()]
        )
        try:
            yield listener.getsockname()
        finally:
            process.stdin.close()
            process.wait(30)


if __name__ == "__main__":
    main()
