"""Keeps an asyncio cluster client's map of slots up to date; `_topology` is the synchronous twin.

Depends on redis-py's cluster client and guards; must not inspect commands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from redis.event import AsyncAfterSlotsCacheRefreshEvent

from guardrails._guard.guard import Guard
from guardrails._runtime.guard_log import log
from guardrails.integrations.redis._cluster_call import Lookup, current_call
from guardrails.integrations.redis._topology import LOOKUP_INTERVAL, LOOKUP_LIMIT, Nodes

__all__ = ["AsyncTopology"]


class AsyncTopology:
    """Looks for changes of the topology in a task, as long as nodes fail or refuse.

    Args:
        nodes: The nodes.
        guard: The cluster's guard.
    """

    def __init__(self, nodes: Nodes, guard: Guard) -> None:
        self._nodes = nodes
        self._guard = guard
        self._suspected = self._stopped = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_known(self) -> bool:
        """True once the client has read the topology."""
        manager = self._nodes.manager
        return bool(manager.default_node is not None and manager.slots_cache)

    def suspect(self) -> None:
        """Looks the topology up soon: a node has failed, has refused a call, or has lost a slot."""
        if self._stopped or isinstance(current_call.get(), Lookup):
            return
        self._suspected = True  # also if it is True: the task may have been cancelled, or its loop closed
        if self._task is None or self._task.done() or self._task.get_loop() is not asyncio.get_running_loop():
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name="guardrails-cluster-topology"
            )

    async def stop(self) -> None:
        """Ends the task: the client is closed. The next suspicion begins another."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    def end(self) -> None:
        """Ends the task when its loop runs next."""
        self._stopped = True
        task, self._task = self._task, None
        if task is not None and not task.get_loop().is_closed():
            task.get_loop().call_soon_threadsafe(task.cancel)

    async def _run(self) -> None:
        while self._suspected and not self._stopped:
            self._suspected = False
            try:
                with Lookup(self._guard, LOOKUP_LIMIT):
                    if self.is_known and not self._nodes.refuses_all:
                        await self._follow(await self._changes())
            except Exception as error:  # noqa: BLE001 - the next look-up may find a node
                log.debug("guard %r: the topology was not read: %r", self._guard.name, error)
            await asyncio.sleep(LOOKUP_INTERVAL)

    async def _changes(self) -> Mapping[range, list[Any]] | None:
        for node in self._nodes.working():
            try:
                sections = await node.execute_command("CLUSTER SLOTS")
            except Exception:  # noqa: BLE001, S112 - it is evidence already
                continue
            return self._nodes.changes(sections, node.host)
        return None

    async def _follow(self, changes: Mapping[range, list[Any]] | None) -> None:
        manager = self._nodes.manager
        if changes is None:
            await manager.initialize()
        elif changes:
            self._nodes.move(changes)
            await manager._event_dispatcher.dispatch_async(AsyncAfterSlotsCacheRefreshEvent())  # noqa: SLF001
