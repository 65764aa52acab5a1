"""A small service in a process of its own, and crowds that visit it, for tests and benchmarks of the edge.

The service has ``/query`` and ``/batch`` (take a connection and so many seconds), ``/stream`` (sends
rows for ever) and ``/health`` (needs no database), as thread endpoints or as coroutines, and ``/busy``
(answers 503 and does nothing else: what a refusal costs without us). Arrivals are an open loop: they are
decided beforehand and wait for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from guardrails import protect
from guardrails.integrations.asgi import GuardrailsMiddleware

SECONDS = 2.0
"""How long a client waits for an answer before it counts as none (status 0)."""


# --- the service -----------------------------------------------------------------------------------


SLEEP = text("select pg_sleep(:seconds)")


def build(settings):
    """The application, with as much of a guard as the settings say."""
    on_loop = settings["endpoints"] == "async"
    make = create_async_engine if on_loop else create_engine
    engine = make(settings["url"], pool_size=settings["pool"], max_overflow=0, pool_timeout=1)
    db = None if settings["guard"] is None else protect(engine, name="db", **settings["guard"])
    query = query_on_loop(engine, settings) if on_loop else query_in_thread(engine, settings)
    routes = [Route("/query", query), Route("/batch", query), Route("/health", health), Route("/busy", busy)]
    app = inside = Starlette(routes=routes)
    if db is not None:
        edge = {"learn_routes": False} if settings["edge"] is None else _edge(settings["edge"], db)
        app = GuardrailsMiddleware(inside, **edge)
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


def _edge(options, db):
    declared = options.pop("requires", None)
    if declared:
        options["requires"] = {path: [db] for path in declared}
    return {"guards": [db], "max_in_flight": 5000, "exempt": ["/lab", "/health"], **options}


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def main():
    """Serves on an inherited socket until standard input ends."""
    settings = json.loads(sys.argv[1])
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with socket.socket(fileno=settings["socket"]) as listener:
        config = uvicorn.Config(
            build(settings), log_level="critical", access_log=False, http=settings["http"], lifespan="off"
        )
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


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


# --- the crowd -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Visit:
    """One request: when it was meant to be sent, and what came of it (status 0: nothing in time)."""

    path: str
    at: float
    seconds: float
    status: int


class _Line(asyncio.Protocol):
    """One connection to the service, used for one request after the other."""

    def __init__(self):
        self.answer = None
        self.transport = None
        self._read = b""

    def connection_made(self, transport):
        self.transport = transport

    def ask(self, path):
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(b"GET %s HTTP/1.1\r\nhost: lab\r\n\r\n" % path.encode())
        return self.answer

    def data_received(self, data):
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if end:
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            if len(body) >= int(length):
                self._read = b""
                self._tell(int(head[9:12]), body)

    def connection_lost(self, _error):
        self._tell(0, b"")

    def _tell(self, status, body):
        if self.answer is not None and not self.answer.done():
            self.answer.set_result((status, body))


class Crowd:
    """Clients of one service, who share their idle connections."""

    def __init__(self, address):
        self._address = address
        self._idle = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        while self._idle:
            self._idle.pop().transport.close()
        await asyncio.sleep(0)

    async def get(self, path, patience=SECONDS):
        """One request: its status and body; 0 when nothing comes in time."""
        line = None
        while self._idle and (line is None or line.transport.is_closing()):
            line = self._idle.pop()
        if line is None or line.transport.is_closing():
            _, line = await asyncio.get_running_loop().create_connection(_Line, *self._address)
        try:
            async with asyncio.timeout(patience):
                status, body = await line.ask(path)
        except BaseException as error:
            line.transport.close()
            if isinstance(error, TimeoutError):
                return 0, b""
            raise
        if status:
            self._idle.append(line)
        return status, body

    async def connect(self, clients):
        """Opens so many connections beforehand, so that no visit has to wait for its own."""
        await asyncio.gather(*[self.get("/lab", 20) for _ in range(clients)])

    async def lab(self):
        """What the service holds."""
        return json.loads((await self.get("/lab", 20))[1])

    async def visit(self, arrivals, patience=SECONDS):
        """Sends everybody at the appointed times; returns their visits in the order of arrival."""
        began = asyncio.get_running_loop().time()
        now = asyncio.get_running_loop().time

        async def one(at, path):
            status, _ = await self.get(path, patience)
            return Visit(path, at, now() - began - at, status)

        async with asyncio.TaskGroup() as visits:
            tasks = []
            for at, path in arrivals:
                ahead = at - (now() - began)
                if ahead > 0:
                    await asyncio.sleep(ahead)
                tasks.append(visits.create_task(one(at, path)))
        return [task.result() for task in tasks]

    async def saturate(self, path, clients, seconds):
        """Good answers a second when so many clients do nothing but ask: the capacity, once it is warm."""
        end = asyncio.get_running_loop().time() + seconds
        served = 0

        async def ask_on():
            nonlocal served
            while asyncio.get_running_loop().time() < end:
                status, _ = await self.get(path, 10)
                served += status == 200

        await asyncio.gather(*[ask_on() for _ in range(clients)])
        return served / seconds


async def leave_in_mid_stream(address, clients, at_once=20):
    """Opens so many streams, reads the beginning of each and is gone without a word."""
    gate = asyncio.Semaphore(at_once)

    async def one():
        async with gate:
            while not await _begin_and_leave(address):
                await asyncio.sleep(0.02)  # refused: all connections are taken
        return True

    return sum(await asyncio.gather(*[one() for _ in range(clients)]))


async def _begin_and_leave(address):
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(b"GET /stream HTTP/1.1\r\nhost: lab\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            return False
        await reader.readline()
        return True
    finally:
        writer.transport.abort()


async def settled(crowd, seconds=10.0):
    """What the service holds once it holds nothing for anybody, or at the end of patience."""
    end = time.monotonic() + seconds
    while True:
        held = await crowd.lab()
        busy = [held[what] for what in ("in_use", "checked_out", "waiting", "in_flight")]
        if time.monotonic() > end or not any(busy):
            return held
        await asyncio.sleep(0.05)


def poisson(path, rate, seconds, seed=1, begin=0.0):
    """Arrivals at random times, so many a second on the average."""
    dice = random.Random(seed)
    at = begin
    while (at := at + dice.expovariate(rate)) < begin + seconds:
        yield at, path


def together(*processes):
    """Several arrival processes as one."""
    return sorted(arrival for process in processes for arrival in process)


def quantile(visits, share):
    """The time within which so many of the visits were over, in seconds; 0 for none."""
    ordered = sorted(visit.seconds for visit in visits)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def of(visits, path=None, status=None):
    """Those of one path, or of one status, or both."""
    return [
        visit
        for visit in visits
        if (path is None or visit.path == path) and (status is None or visit.status == status)
    ]


async def ready(crowd, seconds=60.0):
    """Waits until the service answers."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if (await crowd.get("/health", 5))[0] == 200:
                return
        assert time.monotonic() < end, "the service does not start"
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    main()
