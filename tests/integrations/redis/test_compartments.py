"""``compartments="auto"`` in front of Redis: each call finds its compartment, and none takes them all."""

from __future__ import annotations

import contextlib
import time

import pytest

from guardrails import BulkheadFullError, ConfigurationError, guarded, protect
from guardrails._runtime.scope import RequestScope, close, enter


@pytest.fixture
def guard(cache):
    """The guard of a client with ten connections, with automatic compartments and no queue."""
    return cache.protect(max_connections=10, guard={"compartments": "auto", "max_wait_duration": 0})


class Request(RequestScope):
    """A request on its way to a route, as the middleware would have opened it."""

    def find_name(self):
        return "GET /carts/{id}"


@contextlib.contextmanager
def a_request():
    """A block inside a request."""
    scope = enter(Request(None, time.monotonic, None))
    try:
        yield
    finally:
        close(scope)


def hold(cache, most):
    """Takes as many connections as can be had, up to so many."""
    held = []
    while len(held) < most:
        try:
            held.append(cache.do(lambda client: client.connection_pool.get_connection()))
        except BulkheadFullError:
            break
    return held


def release(cache, held):
    """Gives them back."""
    for connection in held:
        cache.do(lambda client, mine=connection: client.connection_pool.release(mine))


def part(guard, name):
    """The compartment with this name."""
    return next(part for part in guard.compartments if part.name == name)


def test_a_command_belongs_to_its_function_else_to_its_route_else_to_default(cache, guard):
    """Commands and pipelines alike; a plain call of the guard belongs to no workload."""

    @guarded(guard)
    def load():
        cache.do(lambda client: client.ping())

    with a_request():
        load()
        with guard.call():
            cache.do(lambda client: client.pipeline().ping().execute())
    cache.do(lambda client: client.ping())
    assert {one.name: one.snapshot().succeeded for one in guard.compartments} == {
        load.__qualname__: 1,
        "GET /carts/{id}": 1,
        "default": 1,
    }
    assert guard.snapshot().succeeded == 3


def test_one_workload_leaves_the_others_their_connections(cache, guard):
    """Alone it may have all ten; from the moment another workload asks, no more than seven."""
    with a_request():
        alone = hold(cache, 99)
    with pytest.raises(BulkheadFullError):
        cache.do(lambda client: client.ping())
    assert len(alone) == 10
    release(cache, alone)
    cache.do(lambda client: client.ping())
    with a_request():
        shared = hold(cache, 99)
    assert len(shared) == 7
    cache.do(lambda client: client.ping())
    release(cache, shared)
    assert guard.snapshot().in_use == part(guard, "GET /carts/{id}").snapshot().in_use == 0


def test_a_misspelt_choice_is_refused(cache):
    """The message names the words, and the client stays as it was."""
    client = cache.make()
    with pytest.raises(ConfigurationError, match="compartments must be 'auto' or 'declared' or 'none'"):
        protect(client, compartments="automatic")
    assert cache.do(lambda client: client.ping())
