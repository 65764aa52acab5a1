"""Crowds that visit a service over sockets, for tests and benchmarks. They know nothing of what they visit.

Arrivals are an open loop: they are decided beforehand and wait for nobody. A visit is a few callbacks and
no task, for the crowd takes its processor's time from the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass

SECONDS = 2.0
"""How long a client waits for an answer before it counts as none (status 0)."""


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
        self._tell = None
        self._transport = None
        self._read = b""

    def connection_made(self, transport):
        self._transport = transport

    @property
    def closed(self):
        return self._transport.is_closing()

    def ask(self, path, tell):
        """Sends a request and has ``tell(status, body)`` called once: with 0 if the connection ends first."""
        self._tell = tell
        self._transport.write(b"GET %s HTTP/1.1\r\nhost: lab\r\n\r\n" % path.encode())

    def hang_up(self):
        self._transport.abort()

    def data_received(self, data):
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if end:
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            if len(body) >= int(length):
                self._read = b""
                self._answer(int(head[9:12]), body)

    def connection_lost(self, _error):
        self._answer(0, b"")

    def _answer(self, status, body):
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(status, body)


class Crowd:
    """Clients of one service, who share their idle connections."""

    def __init__(self, address):
        self._address = address
        self.idle = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        while self.idle:
            self.idle.pop().hang_up()
        await asyncio.sleep(0)

    async def get(self, path, patience=SECONDS):
        """One request: its status and body; 0 when nothing comes in time."""
        answer = asyncio.get_running_loop().create_future()
        line = self.free() or await self.new()
        line.ask(path, lambda status, body: answer.done() or answer.set_result((status, body)))
        try:
            async with asyncio.timeout(patience):
                status, body = await answer
        except BaseException as error:
            line.hang_up()
            if isinstance(error, TimeoutError):
                return 0, b""
            raise
        if status:
            self.idle.append(line)
        return status, body

    async def connect(self, clients):
        """Opens so many connections, so that no visit has to wait for its own."""
        lines = await asyncio.gather(*[self.new() for _ in range(clients)])
        self.idle += lines

    async def lab(self):
        """What the service holds."""
        return json.loads((await self.get("/lab", 20))[1])

    async def visit(self, arrivals, patience=SECONDS):
        """Sends everybody at the appointed times; returns their visits in the order of arrival."""
        tour = _Tour(self, patience)
        for at, path in arrivals:
            while (ahead := at - tour.now) > 0:
                await asyncio.sleep(min(ahead, 0.1))
                tour.lose_patience()
            tour.send(at, path)
        return await tour.end()

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

    def free(self):
        """An idle connection, or None."""
        while self.idle:
            line = self.idle.pop()
            if not line.closed:
                return line
        return None

    async def new(self):
        """One more connection."""
        _, line = await asyncio.get_running_loop().create_connection(_Line, *self._address)
        return line


class _Tour:
    """The visits of one crowd, from the first to the last."""

    def __init__(self, crowd, patience):
        self._crowd = crowd
        self._patience = patience
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._visits = []
        self._waiting = {}
        self._opened = []

    @property
    def now(self):
        return self._clock() - self._began

    def send(self, at, path):
        number = len(self._visits)
        self._visits.append(Visit(path, at, self._patience, 0))
        if line := self._crowd.free():
            self._send_on(line, number)
        else:
            self._opened.append(asyncio.ensure_future(self._send_on_new(number)))

    def lose_patience(self):
        for number, line in list(self._waiting.items()):
            if self.now - self._visits[number].at > self._patience:
                line.hang_up()

    async def end(self):
        await asyncio.gather(*self._opened)
        while self._waiting:
            await asyncio.sleep(0.005)
            self.lose_patience()
        return self._visits

    async def _send_on_new(self, number):
        self._send_on(await self._crowd.new(), number)

    def _send_on(self, line, number):
        path, at = self._visits[number].path, self._visits[number].at

        def tell(status, _body):
            del self._waiting[number]
            self._visits[number] = Visit(path, at, self.now - at, status)
            if status:
                self._crowd.idle.append(line)

        self._waiting[number] = line
        line.ask(path, tell)


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
