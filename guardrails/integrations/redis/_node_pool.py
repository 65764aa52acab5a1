"""Admits the checkouts of the pool of one cluster node. Depends on the admission of a client's pool."""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any

import redis.cluster

from guardrails._guard.guard import Guard
from guardrails._pool.checkouts import Checkouts
from guardrails._pool.life import LifeSettings
from guardrails.integrations.redis._commands import CommandRunner
from guardrails.integrations.redis._node_connection import GuardedNodeConnection, RefusedConnection
from guardrails.integrations.redis._node_runner import NodeRunner
from guardrails.integrations.redis._pool import ClientAdmission

__all__ = ["NodeAdmission"]

_EXECUTES: CodeType = redis.cluster.RedisCluster._execute_command.__code__  # noqa: SLF001
_NEAREST = 6
"""Frames between a pool and the function of the cluster client that asks it."""


class NodeAdmission(ClientAdmission):
    """Takes slots for the checkouts of one node's pool.

    Args:
        guard: The node's compartment.
        pool: The node's pool.
        life: The settings of the pool's life: the defaults.
        checkouts: The checkouts of all nodes.
        suspect: Called when the node fails or refuses, or answers that a slot is elsewhere.
    """

    _behaviours = GuardedNodeConnection, GuardedNodeConnection  # only for threads: asyncio has no such pools

    def __init__(
        self, guard: Guard, pool: Any, life: LifeSettings, checkouts: Checkouts, suspect: Any
    ) -> None:
        self._checkouts = checkouts
        self._suspect = suspect
        all_connections = checkouts.figures.connections
        super().__init__(guard, pool, life, None)
        checkouts.figures.connections = all_connections
        classifier = self.work.classifier
        self.work.created = None
        classifier.moved = classifier.suspect = suspect
        classifier.in_cluster = True

    def _runner(self, leak_after: float | None) -> CommandRunner:
        return NodeRunner(self._guard, leak_after, is_async=False, checkouts=self._checkouts)

    def _hooks(self) -> dict[str, Any]:
        hooks = super()._hooks()
        get, give_back, suspect = hooks["get_connection"], hooks["release"], self._suspect

        def get_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return get(self, *args, **kwargs)
            except Exception as error:
                suspect()
                if not _is_redirected(sys._getframe(1)):  # noqa: SLF001 - documented
                    raise
                address = self.connection_kwargs
                return RefusedConnection(error, address.get("host"), address.get("port"))

        def release(self: Any, connection: Any) -> None:
            if isinstance(connection, RefusedConnection):
                return
            if hasattr(connection, "settle"):
                if connection.checkout is None:
                    return  # redis-py gives some connections back twice
                connection.settle()
            give_back(self, connection)

        return hooks | {"get_connection": get_connection, "release": release}


def _is_redirected(frame: FrameType | None) -> bool:
    """True if a connection is for a command that another node has redirected."""
    for _ in range(_NEAREST):
        if frame is None:
            return False
        if frame.f_code is _EXECUTES:
            return frame.f_locals.get("connection") is not None
        frame = frame.f_back
    return False
