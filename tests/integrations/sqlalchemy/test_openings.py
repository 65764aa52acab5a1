"""Connects to a server that answers nothing: how many reach it, how many are kept, and who gets them."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time

import pytest
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from guardrails import CallTimeoutError, RejectedError
from guardrails._dbapi.connecting import Opening, Openings, StoppedError
from guardrails.testing.proxy import FaultProxy
from support.polling import poll
from support.sql_lab import in_threads, on_loops, on_postgres

SLOTS, SPARE = 3, 2
LIMIT = 0.2


def opening():
    """The threads that are opening a connection."""
    return [thread for thread in threading.enumerate() if thread.name == "guardrails-connect"]


@pytest.fixture
def wire(lab):
    """A proxy that counts the connections that reach the server."""
    with FaultProxy(lab.server.port) as wire:
        lab.url = functools.partial(lab.url, wire.port)
        yield wire
        wire.heal()
        lab.dispose()


def storm(lab, seconds, width=SLOTS):
    """Tries to connect all the time; every caller is back in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ends = lab.all([lambda: lab.query("select 1")] * width)
        assert all(isinstance(end, CallTimeoutError | RejectedError | SQLAlchemyError) for end in ends), ends


def thawed(lab, wire, most):
    """After the thaw the engine works, and no more connections than that have reached the server."""
    assert 0 < wire.accepted <= most
    poll(lambda: not opening(), "the given-up connects have ended", 10)
    assert lab.soon() == 42
    assert wire.accepted <= most + 1  # if no caller waited at the thaw, the pool opens one
    assert lab.guard.snapshot().in_use == 0
    poll(lambda: lab.server_side("true") <= SLOTS, "the server has the pool's connections only")


def test_given_up_connects_to_a_frozen_server_are_bounded(lab, wire):
    """No more than the slots and two reach the server, however many callers give up meanwhile."""
    lab.protect(pool_size=SLOTS, max_overflow=0, guard={"timeout": LIMIT, "breaker": None})
    with lab.frozen():
        storm(lab, 2.6)
        assert len(opening()) <= SLOTS + SPARE
    thawed(lab, wire, SLOTS + SPARE)


@pytest.mark.slow
def test_given_up_connects_of_twenty_seconds_are_bounded(lab, wire):
    """Likewise over the time for which a pool of ten was seen to open 63 connections."""
    lab.protect(pool_size=SLOTS, max_overflow=0, guard={"timeout": 0.5, "breaker": None})
    with lab.frozen():
        storm(lab, 20)
        reached, kept = wire.accepted, len(opening())
    print(f"{lab.driver}: {reached} connections for {SLOTS} slots, {kept} threads")
    thawed(lab, wire, SLOTS + SPARE)


def test_bound_follows_a_resized_guard(lab, wire):
    """A guard that was made smaller opens fewer connections."""
    lab.protect(pool_size=SLOTS, max_overflow=0, guard={"timeout": LIMIT, "breaker": None})
    lab.guard.resize(1)
    with lab.frozen():
        storm(lab, 2.6, width=1)
    thawed_with = wire.accepted
    assert 0 < thawed_with <= 1 + SPARE
    lab.guard.resize(SLOTS)
    poll(lambda: not opening(), "the given-up connects have ended", 10)
    assert lab.soon() == 42


def test_given_up_connect_goes_to_the_next_caller(lab, wire):
    """A server that answers later than its callers wait has one connection to open, not one for each."""
    lab.protect(pool_size=1, max_overflow=0, guard={"timeout": LIMIT, "breaker": None})
    wire.hang()
    for _ in range(3):
        with pytest.raises(CallTimeoutError):
            lab.query("select 1")
    healing = threading.Timer(0.1, wire.heal)
    healing.start()
    assert lab.soon() == 42
    healing.join()
    assert wire.accepted == 1


@on_postgres
def test_connect_with_other_parameters_is_not_taken_over(lab, wire):
    """A caller with other parameters, such as a new password, gets a connection of its own."""
    lab.protect(pool_size=1, max_overflow=0, guard={"timeout": LIMIT, "breaker": None})
    names = itertools.chain(["lab", "lab"], itertools.repeat("other"))

    @event.listens_for(getattr(lab.engine, "sync_engine", lab.engine), "do_connect")
    def name_it(_dialect, _record, _args, parameters):
        settings = {"application_name": next(names)}
        parameters.update({"server_settings": settings} if lab.driver == "asyncpg" else settings)

    wire.hang()
    for _ in range(2):
        with pytest.raises(CallTimeoutError):
            lab.query("select 1")
    wire.heal()
    assert lab.soon("select current_setting('application_name')") == "other"


@on_loops
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_connect_of_a_cancelled_task_goes_to_the_next(lab, wire):
    """Cancelling from outside costs the server no second connection, and nothing is left behind."""
    lab.protect(pool_size=1, max_overflow=0, guard={"timeout": 5, "breaker": None})
    wire.hang()

    async def cancelled():
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), lab.engine.connect():
                    pass

    lab.runner.run(cancelled())
    wire.heal()
    assert lab.soon() == 42
    assert wire.accepted == 1
    assert (lab.pool.checkedout(), lab.guard.snapshot().in_use) == (0, 0)


@in_threads
def test_refused_connect_is_the_callers_own(lab, wire):
    """What a given-up opening came to is not another caller's error: that one tries for itself."""
    lab.protect(pool_size=1, max_overflow=0, guard={"timeout": LIMIT, "breaker": None})
    wire.hang()
    with pytest.raises(CallTimeoutError):
        lab.query("select 1")
    healing = threading.Timer(0.1, lambda: (wire.reset(), wire.heal()))
    healing.start()
    assert lab.soon() == 42
    healing.join()


class Pretended(Opening):
    """An opening on a clock of the test's own, which never ends by itself."""

    clock = 0.0

    def now(self):
        return Pretended.clock

    def start(self, ended):
        self.end = functools.partial(ended, self)

    async def wait(self, seconds):
        Pretended.clock += seconds

    rest = wait

    def discard(self):
        self.discarded = True


def attempt(openings, key="same", seconds=1.0):
    """One caller in vain; returns the opening that is begun if there is none to take over."""
    wanted = Pretended(None, key, seconds)
    with pytest.raises(StoppedError):
        openings.open(wanted)
    return wanted


def test_another_connect_is_begun_when_the_last_is_old():
    """After five seconds another opening is begun while there is room: the server may have moved."""
    openings = Openings(lambda: 1)
    begun = [hasattr(attempt(openings), "end") for _ in range(20)]
    assert [moment for moment, fresh in enumerate(begun) if fresh] == [0, 5, 10]


def test_room_comes_back_and_late_connections_are_closed():
    """An opening that has ended makes room; its connection is closed if no caller waits for it."""
    openings = Openings(lambda: 0)
    first, second, third = (attempt(openings, key=number) for number in range(3))
    assert not hasattr(third, "end"), "two are the most"
    first.connection = object()
    first.end()
    assert first.discarded
    assert hasattr(attempt(openings, key=3), "end")
    assert not hasattr(second, "discarded")


def test_room_follows_the_slots():
    """The bound is asked for each time."""
    slots = [0]
    openings = Openings(lambda: slots[0])
    assert [hasattr(attempt(openings, key=number), "end") for number in range(3)] == [True, True, False]
    slots[0] = 1
    assert hasattr(attempt(openings, key=3), "end")
