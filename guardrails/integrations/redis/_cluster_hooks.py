"""The hooks on a cluster client, in threads: its calls, its record of the topology, and its nodes' pools.

Depends on pools of nodes and the topology; must not make guards. `_async_cluster_hooks` is the asyncio twin.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import redis.cluster

from guardrails._core.policy import BreakerPolicy
from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.checkouts import Checkouts
from guardrails._pool.figures import Connections
from guardrails._pool.life import LifeSettings
from guardrails.integrations.redis._caching import execute_in_cluster_with
from guardrails.integrations.redis._cluster_call import ClusterCall, current_call
from guardrails.integrations.redis._cluster_retries import is_reduced, without_retries
from guardrails.integrations.redis._guarded_connection import derived
from guardrails.integrations.redis._local_cache import LocalCache
from guardrails.integrations.redis._node_pool import NodeAdmission
from guardrails.integrations.redis._pool_connections import open_connections
from guardrails.integrations.redis._topology import Nodes, Topology

__all__ = ["ClusterHooks"]

_REINITIALIZE = "reinitialize_steps"


class ClusterHooks:
    """The hooks on one cluster client.

    Args:
        cluster: The client.
        guard: Its guard.
        slots: Slots of each node.
        policy: The rules of the nodes' circuits; None is no circuit.
        leak_after: Seconds after which a connection on which nothing runs is reported; None is never.

    Attributes:
        nodes: The nodes and their compartments.
        checkouts: The connections that are out.
        topology: Looks for changes of the topology.
    """

    topology: Any
    _is_async = False

    def __init__(
        self, cluster: Any, guard: Guard, slots: int, policy: BreakerPolicy | None, leak_after: float | None
    ) -> None:
        self._cluster = cluster
        self._guard = guard
        self.nodes = Nodes(cluster, guard, slots, policy)
        self.checkouts = Checkouts(guard, leak_after, is_async=self._is_async, system="redis")
        self.checkouts.figures.connections = self._connections
        self._kept: dict[str, Any] = {}
        cache = getattr(cluster.nodes_manager, "_cache", None)  # asyncio has none
        self._cache = None if cache is None else LocalCache.of(cache)

    def attach(self) -> None:
        """Guards the client, its nodes, and those that it will find."""
        cluster = self._cluster
        if self._cache is not None:
            self._cache.claim({"cluster": id(cluster)})  # another one may be the same, and its nodes differ
        self._kept = {"retry": cluster.retry, _REINITIALIZE: cluster.reinitialize_steps}
        self._attach_nodes()
        cluster.retry = without_retries(cluster.retry, self._guard)
        # The slot of a MOVED is corrected, the others by a look-up: redis-py would close all connections.
        cluster.reinitialize_steps = 0
        parts = {"__slots__": (), "_guardrails": self._guard, **self._methods(type(cluster))}
        cluster.__class__ = derived(type(cluster), parts)

    def detach(self) -> None:
        """Restores the client and its nodes."""
        cluster = self._cluster
        cluster.__class__ = type(cluster).__bases__[0]
        if is_reduced(cluster.retry):  # otherwise it was set meanwhile
            cluster.retry = self._kept["retry"]
        cluster.reinitialize_steps = self._kept[_REINITIALIZE]
        self._detach_nodes()
        self.nodes.drop_all()
        if self._cache is not None:
            self._cache.release()

    def serving(self) -> Iterator[LockedGate]:
        """The gates of the nodes that calls go to; who reads them to the end has found them all open."""
        yield from self.nodes.serving()
        # A request that is refused for that makes no call which could look for a new primary.
        with suppress(RuntimeError):  # no event loop runs here
            self.topology.suspect()

    # --- threads ---------------------------------------------------------------------------------

    def _attach_nodes(self) -> None:
        manager, self._pools = self._cluster.nodes_manager, weakref.WeakKeyDictionary[Any, NodeAdmission]()
        cluster = self._cluster
        self.topology = Topology(
            self.nodes, self._guard, manager.initialize, lambda: not is_reduced(cluster.retry)
        )
        for node in {id(each): each for each in self._known_nodes()}.values():
            if node.redis_connection is not None:
                self._take_over(node.redis_connection, node.name)
        make_plain = manager.create_redis_node

        def create_redis_node(host: Any, port: Any, **kwargs: Any) -> Any:
            client = make_plain(host, port, **kwargs)
            self._take_over(client, redis.cluster.get_node_name(host, port))
            return client

        vars(manager).update(create_redis_node=create_redis_node, initialize=self.topology.refresh)

    def _known_nodes(self) -> list[Any]:
        manager = self._cluster.nodes_manager
        return [*manager.nodes_cache.values(), *manager.startup_nodes.values()]

    def _take_over(self, client: Any, name: str) -> None:
        pool = client.connection_pool
        if pool not in self._pools:
            part, suspect = self.nodes.compartment(name), self.topology.suspect
            admission = NodeAdmission(part, pool, LifeSettings(), self.checkouts, suspect)
            admission.attach()
            self._pools[pool] = admission

    def _connections(self) -> Connections:
        figures = [open_connections(pool) for pool in list(self._pools)]
        return Connections(sum(each.in_use for each in figures), sum(each.idle for each in figures))

    def _detach_nodes(self) -> None:
        self.topology.stop()
        for name in ("create_redis_node", "initialize"):
            vars(self._cluster.nodes_manager).pop(name, None)
        for admission in list(self._pools.values()):
            admission.detach()

    def _methods(self, base: Any) -> dict[str, Any]:
        guard, hooks = self._guard, self
        pipeline_class = derived(
            redis.cluster.ClusterPipeline,
            {"__slots__": (), "execute": _executor(guard, redis.cluster.ClusterPipeline)},
        )

        def execute_command(self: Any, *args: Any, **kwargs: Any) -> Any:
            with ClusterCall(guard):
                return base.execute_command(self, *args, **kwargs)

        def pipeline(self: Any, *args: Any, **kwargs: Any) -> Any:
            made = base.pipeline(self, *args, **kwargs)
            made.__class__ = pipeline_class
            return made

        def close(self: Any) -> None:
            base.close(self)  # ends a look-up under way, too
            hooks.topology.stop()

        if self._cache is not None:
            execute_command = execute_in_cluster_with(self._cache, execute_command)
        return {
            "close": close,
            "execute_command": execute_command,
            "get_node": node_getter(base, _make_node),
            "pipeline": pipeline,
        }


def _make_node(host: str, port: int) -> Any:
    return redis.cluster.ClusterNode(host, port, "primary")  # type: ignore[no-untyped-call]


def node_getter(base: Any, make: Callable[[str, int], Any]) -> Any:
    """Makes a ``get_node`` that makes the node that a command is redirected to, if it is not known yet.

    redis-py raises an ``AttributeError`` for such a node: redis-py's issue 3835.

    Args:
        base: The client's class.
        make: Makes a node of a host and a port.
    """

    def get_node(self: Any, host: Any = None, port: Any = None, node_name: Any = None) -> Any:
        node = base.get_node(self, host, port, node_name)
        if node is None and node_name and current_call.get() is not None:
            address, _, number = node_name.rpartition(":")
            node = self.nodes_manager.nodes_cache[node_name] = make(address, int(number))
        return node

    return get_node


def _executor(guard: Guard, base: Any) -> Any:
    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ClusterCall(guard):
            return base.execute(self, *args, **kwargs)

    return execute
