"""The hooks on an asyncio cluster client; `_cluster_hooks` is the synchronous twin.

Depends on nodes and the topology; must not make guards.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import redis.asyncio.cluster
from redis.exceptions import RedisClusterException

from guardrails._guard.guard import Guard
from guardrails._pool.figures import Connections
from guardrails.errors import ConfigurationError, GuardrailsError
from guardrails.integrations.redis._async_node import GuardedAsyncNodeConnection, GuardedNode
from guardrails.integrations.redis._async_topology import AsyncTopology
from guardrails.integrations.redis._cluster_call import ClusterCall, Lookup, current_call
from guardrails.integrations.redis._cluster_hooks import ClusterHooks, node_getter
from guardrails.integrations.redis._guarded_connection import derive, derived, is_guarded, members
from guardrails.integrations.redis._node_runner import NodeRunner

__all__ = ["AsyncClusterHooks"]

_Node = redis.asyncio.cluster.ClusterNode
_Manager = redis.asyncio.cluster.NodesManager
_Pipeline = redis.asyncio.cluster.ClusterPipeline


class AsyncClusterHooks(ClusterHooks):
    """The hooks on one asyncio cluster client."""

    topology: AsyncTopology
    _is_async = True

    def _attach_nodes(self) -> None:
        manager = self._cluster.nodes_manager
        self._check_loop()
        self.topology = AsyncTopology(self.nodes, self._guard)
        self._runners: dict[str, NodeRunner] = {}
        self._classes: WeakKeyDictionary[NodeRunner, dict[type, Any]] = WeakKeyDictionary()
        parts = {"__slots__": (), "plain": _Node, "hooks": self}
        node_class = self._node_class = derived(_Node, members(GuardedNode) | parts)
        hooks = self

        def set_nodes(self: Any, old: dict[str, Any], new: dict[str, Any], remove_old: bool = False) -> None:  # noqa: FBT001, FBT002
            # redis-py closes all connections to the nodes that it knows already.
            same = {
                name: old.pop(name)
                for name, node in new.items()
                if name in old and old is not new and old[name].server_type == node.server_type
            }
            _Manager.set_nodes(self, old, {name: new[name] for name in new if name not in same}, remove_old)
            old |= same
            hooks.guard_nodes(old)

        async def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                await _Manager.initialize(self, *args, **kwargs)
            except RedisClusterException as error:
                if isinstance(error.__cause__, GuardrailsError):  # of the last node that was asked
                    raise error.__cause__ from None
                raise
            hooks.forget_absent()

        for nodes in (manager.nodes_cache, manager.startup_nodes):
            for node in nodes.values():
                node.__class__ = node_class
                self.nodes.compartment(node.name)
        manager.__class__ = derived(
            _Manager, {"__slots__": (), "set_nodes": set_nodes, "initialize": initialize}
        )

    def guard_nodes(self, nodes: dict[str, Any]) -> None:
        """Guards the nodes that redis-py has found."""
        for node in nodes.values():
            if type(node) is not self._node_class:
                node.__class__ = self._node_class
                self.nodes.compartment(node.name)

    def forget_absent(self) -> None:
        """Drops what belongs to nodes that are no longer in the topology."""
        self.nodes.drop_absent()
        present = {part.name for part in self._guard.compartments}
        self._runners = {name: runner for name, runner in self._runners.items() if name in present}

    def runner(self, name: str) -> NodeRunner:
        """What runs the work of a node."""
        runner = self._runners.get(name)
        if runner is None:
            part = self.nodes.compartment(name)
            runner = self._runners[name] = NodeRunner(part, None, is_async=True, checkouts=self.checkouts)
            classifier = runner.classifier
            classifier.moved = classifier.suspect = self.topology.suspect
            classifier.in_cluster = True
        return runner

    def take_over(self, connection: Any, work: NodeRunner) -> None:
        """Guards a connection of a node whose work is run by ``work``."""
        if is_guarded(connection):
            if connection.work is work:
                return
            connection.__class__ = type(connection).plain  # of a node that was dropped and has come back
        plain, classes = type(connection), self._classes.setdefault(work, {})
        if plain not in classes:
            classes[plain] = derive(plain, GuardedAsyncNodeConnection, work)
        connection.__class__ = classes[plain]
        connection.guard()

    def _check_loop(self) -> None:
        """Refuses a client whose connections belong to an event loop that does not run now."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        for node in self._known_nodes():
            for connection in node._connections:  # noqa: SLF001 - there is no public getter
                transport = getattr(connection._writer, "transport", None)  # noqa: SLF001
                loop = getattr(transport, "_loop", running)
                if connection.is_connected and loop is not running:
                    raise ConfigurationError(
                        "protect: this cluster client has connections of another event loop; make the client "
                        "and its guard in the loop that uses them"
                    )

    def _connections(self) -> Connections:
        in_use = idle = 0
        for node in {id(each): each for each in self._known_nodes()}.values():
            waiting = set(node._free)  # noqa: SLF001
            for connection in list(node._connections):  # noqa: SLF001
                if connection.is_connected:
                    idle += connection in waiting
                    in_use += connection not in waiting
        return Connections(in_use, idle)

    def _detach_nodes(self) -> None:
        self.topology.end()
        if self.topology.is_known:
            self._cluster._initialize = False  # noqa: SLF001 - or redis-py could not close it
        self._cluster.nodes_manager.__class__ = _Manager
        for node in self._known_nodes():
            node.__class__ = _Node
            for connection in node._connections:  # noqa: SLF001
                if is_guarded(connection):
                    connection.__class__ = type(connection).plain

    def _methods(self, base: Any) -> dict[str, Any]:
        guard = self._guard

        async def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
            with ClusterCall(guard):
                return await _Pipeline.execute(self, *args, **kwargs)

        pipeline_class = derived(_Pipeline, {"__slots__": (), "execute": execute})

        async def execute_command(self: Any, *args: Any, **kwargs: Any) -> Any:
            with ClusterCall(guard):
                return await base.execute_command(self, *args, **kwargs)

        def pipeline(self: Any, *args: Any, **kwargs: Any) -> Any:
            made = base.pipeline(self, *args, **kwargs)
            made.__class__ = pipeline_class
            return made

        def make(host: str, port: int) -> Any:
            return self._node_class(host, port, "primary", **self._cluster.connection_kwargs)

        return {
            "execute_command": execute_command,
            "get_node": node_getter(base, make),
            "pipeline": pipeline,
            **_openers(base, guard, self.topology),
        }


def _openers(base: Any, guard: Guard, topology: AsyncTopology) -> dict[str, Any]:
    """The methods that open and close a client."""

    async def initialize(self: Any, **kwargs: Any) -> Any:
        if not self._initialize:
            return self
        if topology.is_known and guard.mode == "enforce":
            self._initialize = False  # the call of a node that works must not look for the others
            topology.suspect()
            return self
        call = current_call.get()
        with ClusterCall(guard) if call is None else nullcontext(call) as call:
            if call.at is None:
                return await base.initialize(self, **kwargs)
            with Lookup(guard, call.at - monotonic()):
                return await base.initialize(self, **kwargs)

    async def aclose(self: Any) -> None:
        if current_call.get() is not None and topology.is_known and guard.mode == "enforce":
            self._initialize = True  # redis-py would close the connections of all other calls, too
            return
        await topology.stop()
        if topology.is_known:
            self._initialize = False  # otherwise redis-py closes nothing after a call that has failed
        await base.aclose(self)

    return {"aclose": aclose, "initialize": initialize}
