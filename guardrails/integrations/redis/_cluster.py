"""Attaches a guard to a cluster client of redis-py.

Depends on every other module about clusters; must not do I/O. The guard stands for the cluster. Each node has
a compartment of it with a circuit and slots of its own, so that a node that fails refuses its own keys and no
others.
"""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio.cluster
import redis.cluster

from guardrails._guard.compartments import guard_of_servers
from guardrails._guard.environment import fill_pool_options
from guardrails._guard.guard import Guard, attach
from guardrails._guard.pool_snapshot import PoolSnapshot
from guardrails._pool.holders import PoolStatus
from guardrails._pool.life import LifeSettings
from guardrails._pool.limits import check_leak_after, guarded_already, raises_as_driver, slots_for
from guardrails._util.checks import Faults
from guardrails.errors import ConfigurationError
from guardrails.integrations.redis._async_cluster_hooks import AsyncClusterHooks
from guardrails.integrations.redis._cluster_hooks import ClusterHooks
from guardrails.integrations.redis._errors import DRIVER_ERRORS
from guardrails.integrations.redis._pool import guard_of
from guardrails.integrations.redis._pool_connections import capacity

__all__ = ["guard_cluster", "is_cluster", "refuse_for_cluster"]

_CLUSTERS = (redis.cluster.RedisCluster, redis.asyncio.cluster.RedisCluster)
_PIPELINES = (redis.cluster.ClusterPipeline, redis.asyncio.cluster.ClusterPipeline)


def is_cluster(client: object) -> bool:
    """True for a cluster client of redis-py; also for its pipelines."""
    return isinstance(client, (*_CLUSTERS, *_PIPELINES))


def guard_cluster(
    client: Any, name: str, leak_after: float | None, raise_as: str | None, options: Any
) -> Guard:
    """Attaches a guard to a cluster client; see `guard_client`.

    Raises:
        ConfigurationError: The client is a pipeline, was closed or is guarded already.
    """
    _check(client)
    fill_pool_options(name, options)
    is_async = isinstance(client, redis.asyncio.cluster.RedisCluster)
    most = client.connection_kwargs["max_connections"] if is_async else _most(client)
    slots = slots_for(name, options.pop("max_concurrent_calls", None), most, "a cluster client")
    if not isinstance(slots, int):
        raise ConfigurationError(
            f"guard {name!r}: max_concurrent_calls must be a whole number for a cluster client, the slots of "
            f"each node, not {slots!r}"
        )
    as_driver = raises_as_driver(name, raise_as)
    check_leak_after(name, leak_after)
    LifeSettings.taken_from(options, name, None, "a cluster client")
    guard, policy = guard_of_servers(name, slots, options.pop("mode", None), options)
    if as_driver:
        guard.call_settings.gates[-1].errors = DRIVER_ERRORS
    kind = AsyncClusterHooks if is_async else ClusterHooks
    attachment = _ClusterAttachment(kind(client, guard, slots, policy, leak_after), guard, slots)
    attach(guard, attachment)
    return guard


def refuse_for_cluster(name: str, compartments: str, fleet: object) -> None:
    """Raises a ConfigurationError for options that a cluster client cannot have."""
    faults = Faults(f"guard {name!r}")
    if compartments != "auto":
        faults.add("compartments", compartments, "'auto' for a cluster client: one for each node")
    if fleet is not None:
        faults.add("fleet", fleet, "None for a cluster client: its nodes fail one by one")
    faults.raise_if_any()


def _most(client: Any) -> int | None:
    """The most connections that a synchronous client opens to a node."""
    pools = [each.redis_connection.connection_pool for each in client.get_nodes() if each.redis_connection]
    return capacity(pools[0]) if pools else None


def _check(client: Any) -> None:
    kind = type(client).__name__
    if isinstance(client, _PIPELINES):
        raise ConfigurationError(f"protect: a {kind} belongs to a cluster client; protect that client")
    known = guard_of(client)
    if known is not None:
        raise guarded_already("this cluster client", known)
    manager = client.nodes_manager
    if isinstance(client, redis.cluster.RedisCluster) and manager.default_node is None:
        raise ConfigurationError("protect: this cluster client has been closed; make a new one")
    for node in list(manager.nodes_cache.values()):
        by = guard_of(getattr(getattr(node, "redis_connection", None), "connection_pool", None))
        if by is not None:
            raise guarded_already(f"the client of node {node.name}", by)


class _ClusterAttachment:
    """The hooks on one cluster client; see `Attachment`."""

    upkeep = None  # redis-py closes idle connections when the topology changes

    def __init__(self, hooks: Any, guard: Guard, slots: int) -> None:
        self._hooks = hooks
        self._slots = slots
        hooks.attach()
        self._gate = guard.call_settings.gates[-1]
        self._gate.servers = hooks.serving

    @property
    def most(self) -> int:
        """See `Attachment`."""
        return self._slots * max(1, len(self._hooks.nodes.manager.nodes_cache))

    def figures(self) -> PoolSnapshot:
        """See `Attachment`."""
        figures: PoolSnapshot = self._hooks.checkouts.figures.snapshot()
        return figures

    def status(self) -> PoolStatus:
        """See `Attachment`."""
        status: PoolStatus = self._hooks.checkouts.registry.status()
        return status

    def detach(self) -> None:
        """Removes the hooks; see `Attachment`."""
        self._gate.servers = None
        self._hooks.detach()
