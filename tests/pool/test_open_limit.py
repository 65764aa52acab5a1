"""The entries of open connections: never more than slots, whatever is opened, kept, closed and resized."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import BulkheadFullError, ConfigurationError, Guard
from guardrails._guard.guard import set_slots
from guardrails._pool import open_limit
from guardrails._pool.idle_pool import IdlePool, run_to_end
from guardrails._pool.life import Age
from guardrails._pool.limits import check_least
from guardrails._pool.open_limit import OpenLimit
from guardrails.fleet import Fleet
from support.polling import wait_until


class Pool:
    """Connections that nobody waits for: those that are kept may be closed to make room."""

    def __init__(self, slots, **options):
        self.guard = Guard("db", max_concurrent_calls=slots, max_wait_duration=0, **options)
        self.limit = OpenLimit(self.guard, self.close_oldest)
        self.kept = []

    async def close_oldest(self):
        if not self.kept:
            return False
        self.kept.pop(0).end()
        return True


@pytest.fixture
def soon(monkeypatch):
    """The end of a connection is not waited for, and an entry for at most a tenth of a second."""
    monkeypatch.setattr(open_limit, "_CLOSING", 0.0)
    monkeypatch.setattr(open_limit, "_MAX_WAIT", 0.1)


@pytest.fixture
def pair():
    """A connection: the client's socket and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


def opened(pool, client):
    entry = pool.limit.reserve()
    entry.opened(client.fileno())
    return entry


def test_a_new_connection_takes_the_place_of_the_one_that_is_idle_for_longest(soon):
    pool = Pool(2)
    first, second = pool.limit.reserve(), pool.limit.reserve()
    pool.kept += [first, second]
    pool.limit.reserve()
    assert pool.kept == [second]
    assert first.closed_at is not None
    assert pool.limit.count() == pool.limit.open_count() == 2


def test_without_a_place_a_new_connection_is_refused(soon):
    pool = Pool(1)
    pool.limit.reserve()
    with pytest.raises(BulkheadFullError):
        pool.limit.reserve()
    assert pool.limit.count() == 1
    assert pool.guard.snapshot().rejected["bulkhead_full"] == 1


def test_slots_that_are_taken_keep_their_places_when_the_guard_gets_fewer(soon):
    """They may open what they were admitted for: a lease counts them already."""
    pool = Pool(2)
    with pool.guard.call(), pool.guard.call():
        set_slots(pool.guard, 1)
        pool.limit.reserve()
        pool.limit.reserve()
        with pytest.raises(BulkheadFullError):
            pool.limit.reserve()


def test_on_an_event_loop_nobody_is_held_up(pair):
    client, server = pair
    pool = Pool(1)
    entry = opened(pool, client)
    client.close()
    entry.end()

    async def main():
        reserved = asyncio.ensure_future(pool.limit.reserve_async())
        await asyncio.sleep(0.05)
        assert not reserved.done()
        server.close()
        pool.kept.append(await reserved)

    asyncio.run(main())
    pool.limit.reserve()
    assert not pool.kept


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_guard_that_does_not_enforce_counts_and_closes_nothing(mode):
    pool = Pool(1, mode=mode)
    pool.kept.append(pool.limit.reserve())
    pool.limit.reserve()
    assert pool.limit.count() == 2
    assert len(pool.kept) == 1


def test_a_place_is_free_when_the_server_has_closed_its_end(pair):
    client, server = pair
    pool = Pool(1)
    entry = opened(pool, client)
    client.close()
    entry.end()
    assert (pool.limit.count(), pool.limit.open_count()) == (1, 0)
    assert server.recv(1) == b"", "the duplicate hides the close from no server"
    assert pool.limit.count() == 1
    server.close()
    wait_until(lambda: pool.limit.count() == 0)


def test_who_needs_a_place_waits_for_the_server_and_closes_nothing_else(pair):
    client, server = pair
    pool = Pool(2)
    entry = opened(pool, client)
    pool.kept.append(pool.limit.reserve())
    client.close()
    entry.end()
    reserved = []
    thread = threading.Thread(target=lambda: reserved.append(pool.limit.reserve()))
    thread.start()
    time.sleep(0.1)
    assert not reserved
    server.close()
    thread.join(20)
    assert len(reserved) == len(pool.kept) == 1


def test_a_socket_that_was_shut_both_ways_counts_until_the_server_has_closed_it(pair):
    """As a driver does it that gives up on a statement: its own end reads as closed at once."""
    client, server = pair
    pool = Pool(1)
    entry = opened(pool, client)
    client.shutdown(socket.SHUT_RDWR)
    client.close()
    entry.end()
    assert pool.limit.count() == 1
    server.close()
    wait_until(lambda: pool.limit.count() == 0)


def test_what_the_server_sent_last_is_skipped(pair):
    client, server = pair
    pool = Pool(1)
    entry = opened(pool, client)
    server.sendall(b"x" * 100)
    client.close()
    entry.end()
    assert pool.limit.count() == 1
    server.close()
    wait_until(lambda: pool.limit.count() == 0)


def test_a_unix_socket_has_its_end_too():
    client, server = socket.socketpair()
    pool = Pool(1)
    entry = opened(pool, client)
    client.close()
    entry.end()
    assert pool.limit.count() == 1
    server.close()
    assert pool.limit.count() == 0


def test_a_server_that_never_closes_is_waited_for_no_longer_than_the_limit(pair, monkeypatch):
    monkeypatch.setattr(open_limit, "_MAX_CLOSING", 0.05)
    client, _ = pair
    pool = Pool(1)
    opened(pool, client).end()
    client.close()
    wait_until(lambda: pool.limit.count() == 0)


@pytest.mark.parametrize("descriptor", [None, -1, 10**6])
def test_an_end_that_cannot_be_seen_is_given_its_time(descriptor, monkeypatch):
    """So is a connection that could not be opened: the server may have a session for it."""
    monkeypatch.setattr(open_limit, "_CLOSING", 0.05)
    pool = Pool(1)
    entry = pool.limit.reserve()
    entry.opened(descriptor)
    entry.end()
    assert pool.limit.count() == 1
    pool.limit.reserve()  # waits
    assert pool.limit.count() == 1


def test_an_end_counts_once(soon):
    pool = Pool(2)
    entry = pool.limit.reserve()
    pool.limit.reserve()
    entry.end()
    entry.end()
    assert pool.limit.count() == 1


def test_no_descriptor_is_left(pair):
    client, server = pair

    def close_one_of_two():
        pool = Pool(2)
        entries = [opened(pool, client) for _ in range(2)]
        ours = [entry._descriptor for entry in entries]
        entries.pop(0).end()
        server.close()
        wait_until(lambda: pool.limit.count() == 1)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(ours[0])
        os.fstat(ours[1])
        return ours[1]

    other = close_one_of_two()
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(other)


def test_a_child_process_has_no_connections_of_its_own():
    pool = Pool(1)
    entry = pool.limit.reserve()
    pool.limit.reset_in_child()
    assert pool.limit.count() == 0
    entry.end()
    assert pool.limit.count() == 0


class IdleTexts(IdlePool):
    """Idle connections that are texts; those that another thread takes at the same time cannot be taken."""

    def __init__(self, **used):
        self.ages, self.closed, self.gone = {}, [], set()
        for connection, at in used.items():
            self.ages[connection] = Age(at, 0.0)

    def idle(self):
        return list(self.ages.items())

    def open_count(self):
        return len(self.ages)

    def take(self, connection):
        return connection not in self.gone and self.ages.pop(connection, None) is not None

    def put_back(self, connection):
        raise NotImplementedError

    async def close(self, connection):
        self.closed.append(connection)

    async def ping(self, connection):
        raise NotImplementedError

    async def open(self):
        raise NotImplementedError


def test_the_oldest_idle_connection_is_closed_that_nobody_else_takes():
    pool = IdleTexts(a=3.0, b=1.0, c=2.0)
    pool.gone.add("b")
    assert run_to_end(pool.close_oldest())
    assert pool.closed == ["c"]
    pool.gone.add("a")
    assert not run_to_end(pool.close_oldest())
    assert pool.closed == ["c"]


def test_a_pool_that_keeps_connections_can_have_a_verdict_and_no_budget(tmp_path):
    with contextlib.closing(Fleet(f"sqlite:///{tmp_path}/fleet.db", name="shop")) as fleet:
        budget = fleet.budget("db", connections=4)
        check_least("db", budget, 0)
        check_least("db", fleet.verdict("db"), 3)
        check_least("db", None, 3)
        with pytest.raises(ConfigurationError, match="guard 'db': the pool's min_size must be 0, got 3"):
            check_least("db", budget, 3)


class Lease:
    """A pool that follows a lease: slots without a connection, and connections in use with their slots."""

    def __init__(self):
        self.pool = Pool(3)
        self.gate = self.pool.guard.call_settings.gates[0]
        self.slots, self.busy, self.told = [], [], 3

    def take(self, _):
        slots = self.gate.core.bulkhead
        if slots.taken < slots.limit:
            self.slots.append(self.gate.check_out_now())

    def open(self, _):
        if self.slots:
            self.busy.append((self.slots.pop(), self.pool.limit.reserve()))

    def keep(self, number):
        if self.busy:
            slot, entry = self.busy.pop(number % len(self.busy))
            self.pool.kept.append(entry)
            self.gate.check_in(slot)

    def claim(self, number):
        kept = self.pool.kept
        if kept and self.slots:
            self.busy.append((self.slots.pop(), kept.pop(number % len(kept))))

    def drop(self, number):
        if self.busy:
            slot, entry = self.busy.pop(number % len(self.busy))
            entry.end()
            self.gate.check_in(slot)

    def free(self, _):
        if self.slots:
            self.gate.check_in(self.slots.pop())

    def size(self, number):
        set_slots(self.pool.guard, number)
        while self.pool.kept and self.pool.limit.open_count() > number:
            self.pool.kept.pop(0).end()
        self.told = max(number, self.pool.limit.count(), self.gate.core.bulkhead.taken)

    def end(self):
        for slot in [*self.slots, *(slot for slot, _ in self.busy)]:
            self.gate.check_in(slot)


ORDERS = ["take", "open", "keep", "claim", "drop", "free", "size"]


@given(st.lists(st.tuples(st.sampled_from(ORDERS), st.integers(0, 5)), max_size=60))
def test_open_connections_never_exceed_what_a_lease_was_told(orders):
    """Any order of slots taken and returned, of connections opened, kept, claimed and closed, and of limits.

    What may be open until the limit grows is at most the larger of the count and the slots that are taken.
    """
    lease = Lease()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_limit, "_CLOSING", 0.0)
        patch.setattr(open_limit, "_MAX_WAIT", 0.0)
        try:
            for order, number in orders:
                getattr(lease, order)(number)
                count = lease.pool.limit.count()
                assert count == len(lease.busy) + len(lease.pool.kept)
                assert count <= lease.told, "no connection is open that the lease does not know of"
        finally:
            lease.end()
