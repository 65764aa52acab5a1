"""Every fault of docs/guides/redis.md, by one story: calls end in time, the circuit opens, and it heals."""

from __future__ import annotations

import contextlib
import threading

import pytest
import redis

from guardrails import CallTimeoutError, CircuitOpenError
from guardrails.testing.proxy import FaultProxy
from guardrails.testing.servers import ValkeyServer
from support.polling import poll
from support.redis_lab import LATE, RedisServer, Stopwatch, frozen, nimble, with_each_parser

GIVEN = 0.5
"""Seconds for a call."""

OPEN_WAIT = 0.3
"""Seconds for which the circuit stays open."""

SHAPES = [
    lambda client: client.set("key", "value"),
    lambda client: client.pipeline(transaction=False).set("key", "value").get("key").execute(),
    lambda client: client.pipeline().set("key", "value").get("key").execute(),
]

ANSWERS = [True, [True, b"value"], [True, b"value"]]


def answers(client):
    """Whether the server does."""
    try:
        return client.ping()
    except redis.TimeoutError:
        return False


class Trouble:
    """What can be done to a server, and to the wire to it. Each is over at the end of its block."""

    def __init__(self, cache, server, wire):
        self._cache = cache
        self._server = server
        self._wire = wire

    @contextlib.contextmanager
    def _wire_fault(self, *faults):
        for fault in faults:
            fault()
        try:
            yield
        finally:
            self._wire.heal()

    @contextlib.contextmanager
    def _again_and_again(self, fault):
        over = threading.Event()

        def strike():
            while not over.wait(0.01):
                fault()

        striking = threading.Thread(target=strike)
        with self._wire_fault(lambda: self._wire.delay(0.05)):
            striking.start()
            try:
                yield
            finally:
                over.set()
                striking.join()

    @contextlib.contextmanager
    def _order(self, order, until):
        with self._root() as root:
            root.execute_command(*order.split())
            try:
                yield
            finally:
                root.execute_command(*until.split())

    def _root(self):
        return redis.Redis(port=self._server.port, socket_timeout=30)

    def frozen_warm(self):
        return frozen(self._server)

    def frozen_cold(self):
        self._cache.do(lambda client: client.connection_pool.disconnect())
        return frozen(self._server)

    @contextlib.contextmanager
    def killed(self):
        self._server.kill()
        try:
            yield
        finally:
            self._server.restart()

    @contextlib.contextmanager
    def asleep(self):
        with self._root() as root:
            ordering = root.connection_pool.get_connection()
            ordering.send_command("DEBUG", "SLEEP", "3")
            with redis.Redis(port=self._server.port, socket_timeout=0.3, retry=None) as other:
                poll(lambda: not answers(other), "the server sleeps")
            try:
                yield
            finally:
                ordering.read_response()
                root.connection_pool.release(ordering)

    def out_of_memory(self):
        return self._order("CONFIG SET maxmemory 1", until="CONFIG SET maxmemory 0")

    def read_only(self):
        return self._order("REPLICAOF 127.0.0.1 1", until="REPLICAOF NO ONE")

    def refused(self):
        return self._wire_fault(self._wire.refuse, self._wire.reset)

    def blackhole(self):
        return self._wire_fault(self._wire.hang)

    def reset(self):
        return self._again_and_again(self._wire.reset)

    def half_closed(self):
        return self._again_and_again(self._wire.half_close)

    def sliced(self):
        return self._wire_fault(lambda: self._wire.slice(1, every=0.2))

    def truncated(self):
        return self._again_and_again(lambda: self._wire.cut_after(3))


FAULTS = [name for name in vars(Trouble) if not name.startswith("_")]

ON_THE_WIRE = {"refused", "blackhole", "reset", "half_closed", "sliced", "truncated"}
"""Those that are the same whatever program is at the other end."""


@pytest.fixture(scope="module")
def server(request):
    """A server that only these tests hurt."""
    debug = ("--enable-debug-command", "yes") if request.param is ValkeyServer else ()
    with request.param.start(*debug) as server:
        yield server


@pytest.mark.sampled
@with_each_parser
@pytest.mark.parametrize(
    ("server", "fault"),
    [(ValkeyServer, fault) for fault in FAULTS]
    + [(RedisServer, fault) for fault in FAULTS if fault not in ON_THE_WIRE],
    indirect=["server"],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_calls_end_the_circuit_opens_and_heals(cache, server, fault):
    """A command, a pipeline and a transaction each, on a client of each flavour."""
    breaker = nimble(
        minimum_number_of_calls=1 + len(SHAPES),
        wait_duration_in_open_state=OPEN_WAIT,
        slow_call_duration_threshold=GIVEN / 2,
    )
    with FaultProxy(server.port) as wire:
        cache.port = wire.port
        guard = cache.protect(guard={"timeout": GIVEN, "breaker": breaker})
        assert cache.do(lambda client: client.set("key", "value"))
        with getattr(Trouble(cache, server, wire), fault)():
            for work in SHAPES:
                assert guard.state == "closed"
                with Stopwatch() as watch, pytest.raises((CallTimeoutError, redis.RedisError)):
                    cache.do(work)
                assert watch.seconds < GIVEN + LATE
                assert cache.out() == guard.snapshot().in_use == 0
            assert guard.state == "open"

        def healed():
            with contextlib.suppress(CircuitOpenError, CallTimeoutError, redis.RedisError):
                return [cache.do(work) for work in SHAPES] == ANSWERS and guard.state == "closed"

        poll(healed, "the circuit has closed by itself", OPEN_WAIT + 1.0 + 4 * LATE)
