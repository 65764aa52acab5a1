"""How a guarded cluster client follows its topology, with redis-py's own records and no server."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
from redis.cluster import PRIMARY, REPLICA, ClusterNode
from redis.event import AfterSlotsCacheRefreshEvent

from guardrails import Guard
from guardrails.integrations.redis._async_topology import AsyncTopology
from guardrails.integrations.redis._cluster_call import Lookup, current_call
from guardrails.integrations.redis._topology import Nodes, Topology

HOST = "10.0.0.1"
SECTIONS = [(0, 5460, 0, 3), (5461, 10922, 1, 4), (10923, 16383, 2, 5)]
"""First slot, last slot, primary, replica."""


class Node(ClusterNode):
    """A node that answers ``CLUSTER SLOTS``."""

    answer: object = None
    asked = 0

    @property
    def redis_connection(self):
        return self

    @redis_connection.setter
    def redis_connection(self, _):
        pass

    def execute_command(self, command):
        assert command == "CLUSTER SLOTS"
        self.asked += 1
        return self.answer


class AsyncNode(Node):
    async def execute_command(self, command):
        return Node.execute_command(self, command)


class Manager:
    """redis-py's record of the topology, as far as it is looked at."""

    def __init__(self, kind=Node):
        nodes = [kind(HOST, 7000 + number, PRIMARY if number < 3 else REPLICA) for number in range(6)]
        self.nodes_cache = {node.name: node for node in nodes}
        self.startup_nodes = self.nodes_cache
        self.default_node = nodes[0]
        self.slots_cache = {}
        self.events = []
        self.read = 0
        self._event_dispatcher = self
        self._lock = threading.RLock()
        for first, last, *numbers in SECTIONS:
            serving = [nodes[number] for number in numbers]
            self.slots_cache.update(dict.fromkeys(range(first, last + 1), serving))

    def remap_host_port(self, host, port):
        return host, port

    def dispatch(self, event):
        self.events.append(type(event))

    async def dispatch_async(self, event):
        self.events.append(type(event))

    def initialize(self, **_):
        """Counted; nothing is read."""
        self.read += 1


def answer_of(sections):
    """What a node answers to ``CLUSTER SLOTS``."""
    return [
        [first, last, *([HOST.encode(), 7000 + number, b"id", []] for number in numbers)]
        for first, last, *numbers in sections
    ]


def nodes_of(manager):
    guard = Guard("shards", max_concurrent_calls=600, breaker=None)
    nodes = Nodes(SimpleNamespace(nodes_manager=manager), guard, 100, None)
    for name in manager.nodes_cache:
        nodes.compartment(name)
    return guard, nodes


@pytest.fixture
def manager():
    return Manager()


def test_an_answer_that_says_what_is_known_changes_nothing(manager):
    _, nodes = nodes_of(manager)
    assert nodes.changes(answer_of(SECTIONS), HOST) == {}


@pytest.mark.parametrize(
    "sections",
    [
        [(0, 5459, 0, 3), (5460, 10922, 1, 4), (10923, 16383, 2, 5)],  # one slot of the first primary
        [(0, 5460, 0, 3), (5461, 10922, 2, 5), (10923, 16383, 1, 4)],  # two primaries exchange theirs
        [(0, 5460, 0, 4), (5461, 10922, 1, 3), (10923, 16383, 2, 5)],  # two replicas exchange their primaries
        [(0, 5460, 0, 3, 5), (5461, 10922, 1, 4), (10923, 16383, 2)],
    ],
)
def test_slots_that_moved_are_corrected_without_reading_the_topology(manager, sections):
    _, nodes = nodes_of(manager)
    nodes.move(nodes.changes(answer_of(sections), HOST))
    for first, last, *numbers in sections:
        for slot in (first, last, (first + last) // 2):
            assert [node.port - 7000 for node in manager.slots_cache[slot]] == numbers
    assert nodes.changes(answer_of(sections), HOST) == {}
    assert len(manager.slots_cache) == 16384


def test_a_slot_that_was_corrected_by_a_redirection_is_compared_too(manager):
    _, nodes = nodes_of(manager)
    manager.slots_cache[7] = [manager.nodes_cache[f"{HOST}:7001"]]
    changes = nodes.changes(answer_of(SECTIONS), HOST)
    assert list(changes) == [range(5461)]
    nodes.move(changes)
    assert manager.slots_cache[7][0].port == 7000


def test_the_order_of_replicas_is_no_change(manager):
    sections = [(0, 5460, 0, 3, 5), (5461, 10922, 1, 4), (10923, 16383, 2)]
    _, nodes = nodes_of(manager)
    nodes.move(nodes.changes(answer_of(sections), HOST))
    assert nodes.changes(answer_of([(0, 5460, 0, 5, 3), *sections[1:]]), HOST) == {}


@pytest.mark.parametrize(
    "sections",
    [
        [(0, 5460, 6, 3), *SECTIONS[1:]],  # a new primary
        [(0, 5460, 0, 3, 6), *SECTIONS[1:]],  # a new replica
        [(0, 5460, 0), *SECTIONS[1:]],  # a replica has gone
        [(0, 5460, 3, 0), *SECTIONS[1:]],  # a replica was promoted
        [(0, 10922, 1, 4), SECTIONS[2]],  # a primary and its replica have no slots any more
        [(0, 5459, 0, 3), *SECTIONS[1:]],  # a slot has no node any more
    ],
)
def test_redis_py_reads_the_topology_when_the_nodes_differ(manager, sections):
    _, nodes = nodes_of(manager)
    assert nodes.changes(answer_of(sections), HOST) is None


def test_redis_py_reads_the_topology_when_a_slot_is_unknown(manager):
    _, nodes = nodes_of(manager)
    manager.slots_cache.pop(16383)
    assert nodes.changes(answer_of(SECTIONS), HOST) is None


def test_a_look_up_asks_no_node_whose_circuit_is_open(manager):
    guard, nodes = nodes_of(manager)
    first, second, *others = guard.compartments
    for part in others:
        part.force_open()
    first.metrics_only()
    assert second.state == "disabled"
    assert {node.name for node in nodes.working()} == {first.name, second.name}


def test_an_empty_host_is_that_of_the_node_that_was_asked(manager):
    _, nodes = nodes_of(manager)
    answer = answer_of(SECTIONS)
    for section in answer:
        section[2][0] = b""
    assert nodes.changes(answer, HOST) == {}


MOVED = [(0, 5459, 0, 3), (5460, 10922, 1, 4), SECTIONS[2]]
PROMOTED = [(0, 5460, 3, 0), *SECTIONS[1:]]


@pytest.mark.parametrize(
    ("sections", "read", "events"),
    [(SECTIONS, 0, 0), (MOVED, 0, 1), (PROMOTED, 1, 0)],
    ids=["same", "moved", "promoted"],
)
def test_a_look_up_reads_the_topology_only_for_other_nodes_and_tells_subscribers(
    manager, sections, read, events
):
    guard, nodes = nodes_of(manager)
    for node in manager.nodes_cache.values():
        node.answer = answer_of(sections)
    topology = Topology(nodes, guard, manager.initialize, lambda: True)
    topology.look_up(20)
    assert (manager.read, len(manager.events)) == (read, events)
    assert all(issubclass(event, AfterSlotsCacheRefreshEvent) for event in manager.events)


def test_a_look_up_in_a_task_does_the_same():
    manager = Manager(AsyncNode)
    guard, nodes = nodes_of(manager)
    for node in manager.nodes_cache.values():
        node.answer = answer_of(MOVED)

    async def main():
        topology = AsyncTopology(nodes, guard)
        topology.suspect()
        async with asyncio.timeout(20):
            while not manager.events:
                await asyncio.sleep(0.01)
        await topology.stop()

    asyncio.run(main())
    assert manager.slots_cache[5460][0].port == 7001
    assert manager.read == 0


def test_a_call_that_is_not_tried_again_does_not_look_itself(manager):
    guard, nodes = nodes_of(manager)
    asked = []
    for node in manager.nodes_cache.values():
        node.answer = answer_of(SECTIONS)
    tries_again = False
    topology = Topology(nodes, guard, manager.initialize, lambda: tries_again)
    topology.suspect = lambda: asked.append("soon")
    topology.refresh(last_failed_node_name="any")
    assert asked == ["soon"]
    assert sum(node.asked for node in manager.nodes_cache.values()) == 0
    tries_again = True
    topology.refresh(last_failed_node_name="any")
    assert sum(node.asked for node in manager.nodes_cache.values()) == 1


def test_a_call_that_is_tried_again_waits_for_the_look_up_that_is_under_way(manager):
    guard, nodes = nodes_of(manager)
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        host = HOST

        @property
        def redis_connection(self):
            return self

        def execute_command(self, _):
            assert isinstance(current_call.get(), Lookup)
            begun.set()
            assert go_on.wait(20)
            return answer_of(SECTIONS)

    slow = Slow()
    nodes.working = lambda: [slow]
    topology = Topology(nodes, guard, manager.initialize, lambda: True)
    first = threading.Thread(target=topology.look_up, args=(20,))
    first.start()
    assert begun.wait(20)
    begun.clear()
    topology.look_up(0.01)  # its caller has no more time
    second = threading.Thread(target=topology.refresh)
    second.start()
    go_on.set()
    first.join(20)
    second.join(20)
    assert not begun.is_set()
