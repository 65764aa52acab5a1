"""What a guarded client of the parent is in the child of a fork; run with the name of a check.

Fork is for synchronous clients only: an event loop cannot be carried over either.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import traceback
import warnings

from redis import BlockingConnectionPool, ConnectionPool, Redis

from guardrails import protect
from guardrails.testing.servers import ValkeyServer

# Python 3.12 and later say that a fork among threads is risky; that it is the case that has to work here.
warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)

SIZE = 4
"""Connections of a pool."""


def forked(body):
    """Runs something in a child, which leaves nothing to the parent's way out; the child's process id."""
    child = os.fork()
    if child:
        return child
    try:
        body()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def is_well(child):
    """Waits for a child's end and says whether it was a good one."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def ask(client, who):
    """A few hundred questions, each with its own answer."""
    for number in range(300):
        value = f"{who}-{number}".encode()
        assert client.echo(value) == value


def pool(kind=ConnectionPool):
    """While a thread of the parent holds a connection, and another is idle in the pool."""
    with ValkeyServer.start() as server:
        client = Redis(connection_pool=kind(port=server.port, max_connections=SIZE))
        guard = protect(client, name="cache", timeout=30)
        popped = []
        waiting = threading.Thread(target=lambda: popped.append(client.blpop("jobs", timeout=60)))
        waiting.start()
        while client.info("clients")["blocked_clients"] < 1:
            time.sleep(0.01)
        mine = client.client_id()
        known = {int(each["id"]) for each in client.client_list()}
        assert len(known) == 2

        def child():
            assert (guard.snapshot().in_use, guard.snapshot().waiting) == (0, 0)
            ask(client, "child")
            assert client.client_id() not in known
            held = [client.connection_pool.get_connection() for _ in range(SIZE)]
            assert guard.snapshot().in_use == SIZE
            for connection in held:
                client.connection_pool.release(connection)
            held.clear()
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # what the parent had lent out, too: its copy of that socket is nobody's here
            assert guard.snapshot().in_use == 0

        running = forked(child)
        ask(client, "parent")
        assert is_well(running)
        assert client.client_id() == mine
        client.rpush("jobs", "one")
        waiting.join()
        assert popped == [(b"jobs", b"one")]
        assert guard.snapshot().in_use == 0
        client.connection_pool.disconnect()


def blocking_pool():
    """The same of the other pool."""
    pool(BlockingConnectionPool)


def single_connection():
    """A client that keeps one connection: two processes on one socket would read each other's answers."""
    with ValkeyServer.start() as server, Redis(port=server.port, single_connection_client=True) as client:
        guard = protect(client, name="cache", timeout=30)
        mine = client.client_id()

        def child():
            ask(client, "child")
            assert client.client_id() != mine
            assert guard.snapshot().in_use == 1
            client.close()
            assert guard.snapshot().in_use == 0

        running = forked(child)
        ask(client, "parent")
        assert is_well(running)
        assert client.client_id() == mine


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print("fine")
