"""Keeps a cluster client's map of slots up to date, and the compartments of the nodes in it, in threads.

Depends on redis-py's cluster client and guards; must not inspect commands. redis-py looks for the topology
inside the calls that fail, and closes connections to nodes that work when it does. Here a background thread
asks one node that works, and redis-py reads the topology anew only if it has changed. `_async_topology` is
the asyncio twin.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from operator import countOf
from time import monotonic
from typing import Any

from redis.cluster import PRIMARY, REPLICA
from redis.event import AfterSlotsCacheRefreshEvent
from redis.utils import str_if_bytes

from guardrails._core.policy import BreakerPolicy
from guardrails._guard.compartments import compartment_of_server, drop_compartment
from guardrails._guard.guard import Guard, set_slots
from guardrails._guard.locked_gate import LockedGate
from guardrails._runtime.fork import renew_after_fork
from guardrails._runtime.guard_log import log
from guardrails._runtime.threads import daemon
from guardrails.integrations.redis._cluster_call import Lookup, current_call

__all__ = ["LOOKUP_INTERVAL", "LOOKUP_LIMIT", "Nodes", "Topology"]

LOOKUP_INTERVAL = 0.5
"""Seconds between two look-ups while nodes fail or refuse."""

LOOKUP_LIMIT = 2.0
"""Most seconds of one look-up. Each node gets half of what is left."""

_ADMITTING = {"closed", "disabled", "metrics_only"}
"""States of a circuit that admits all calls."""


class Nodes:
    """The nodes that a cluster client knows, with a compartment for each.

    Args:
        cluster: The client.
        guard: Its guard.
        slots: Slots of each node.
        policy: The rules of the nodes' circuits; None is no circuit.

    Attributes:
        manager: redis-py's record of the topology.
    """

    def __init__(self, cluster: Any, guard: Guard, slots: int, policy: BreakerPolicy | None) -> None:
        self._cluster = cluster
        self.manager = cluster.nodes_manager
        self._guard = guard
        self._policy = policy
        self._slots = slots
        self._lock = threading.RLock()
        self._total = 0

    def compartment(self, name: str) -> Guard:
        """The compartment of a node, made if it is new."""
        with self._lock:
            known = next((part for part in self._guard.compartments if part.name == name), None)
            if known is None:
                self._fit(len(self._guard.compartments) + 1)
                known = compartment_of_server(self._guard, name, self._slots, self._policy)
            return known

    def drop_absent(self) -> None:
        """Drops the compartments of nodes that are no longer in the topology."""
        manager = self.manager
        with self._lock:
            present = {*list(manager.nodes_cache), *list(manager.startup_nodes)}
            for part in self._guard.compartments:
                if part.name not in present:
                    drop_compartment(self._guard, part)
            self._fit(len(self._guard.compartments))

    def drop_all(self) -> None:
        """Drops all compartments: the guard is detached."""
        for part in self._guard.compartments:
            drop_compartment(self._guard, part)

    @property
    def refuses_all(self) -> bool:
        """True while the guard was opened by hand: no node may be asked."""
        return self._guard.state == "forced_open"

    def serving(self) -> Iterator[LockedGate]:
        """The gates of the nodes that calls go to: the primaries, and the replicas that are read from."""
        parts = {part.name: part for part in self._guard.compartments}
        cluster = self._cluster
        reads_replicas = cluster.read_from_replicas or cluster.load_balancing_strategy is not None
        for name, node in list(self.manager.nodes_cache.items()):
            if name in parts and (reads_replicas or node.server_type == PRIMARY):
                yield parts[name].call_settings.gates[0]

    def working(self) -> list[Any]:
        """The nodes whose circuits admit all calls, in random order."""
        states = {part.name: part.state for part in self._guard.compartments}
        nodes = [
            node for name, node in list(self.manager.nodes_cache.items()) if states.get(name) in _ADMITTING
        ]
        random.shuffle(nodes)
        return nodes

    def changes(self, sections: Iterable[Sequence[Any]], asked: str) -> dict[range, list[Any]] | None:
        """Returns the slots that an answer to ``CLUSTER SLOTS`` gives to other nodes than the client's map.

        It costs a fraction of redis-py's reading, which goes through the 16,384 slots in Python and keeps all
        other callers waiting meanwhile.

        Args:
            sections: The answer: first and last slot, the primary's address, and those of its replicas.
            asked: The host of the node that gave the answer.

        Returns:
            The slots, each range with its nodes. None if redis-py has to read the topology anew: a node has
            come, gone or changed its role, or a slot is new.
        """
        known, nodes = self.manager.slots_cache, self.manager.nodes_cache
        names, count, moved = set[str](), 0, dict[range, list[Any]]()
        for first, last, *servers in sections:
            wanted = [self._name(server, asked) for server in servers]
            found = [nodes[name] for name in wanted if name in nodes]
            if [node.server_type for node in found] != [PRIMARY, *[REPLICA] * (len(wanted) - 1)]:
                return None
            slots = range(int(first), int(last) + 1)
            now = known.get(slots[0], [])
            if not _same(now, found) or countOf(map(known.get, slots), now) != len(slots):
                moved[slots] = found
            names.update(wanted)
            count += len(slots)
        return moved if names == set(nodes) and count == len(known) else None

    def move(self, slots: Mapping[range, list[Any]]) -> None:
        """Corrects the client's map; see `changes`."""
        with getattr(self.manager, "_lock", nullcontext()):  # for threads
            for some, nodes in slots.items():
                self.manager.slots_cache.update(dict.fromkeys(some, nodes))

    def _name(self, server: Sequence[Any], asked: str) -> str:
        host, port = self.manager.remap_host_port(str_if_bytes(server[0]) or asked, int(server[1]))
        return f"{host}:{port}"

    def _fit(self, count: int) -> None:
        """Gives the guard the slots of all nodes, unless it was resized by hand."""
        limit = self._guard.snapshot().max_concurrent_calls
        if self._total in {0, limit}:
            self._total = max(1, count) * self._slots
            set_slots(self._guard, self._total)


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """True if the nodes of a slot are the same: its primary, and its replicas in any order."""
    return one[:1] == other[:1] and len(one) == len(other) and set(one) == set(other)


class Topology:
    """Looks for changes of the topology in a thread, as long as nodes fail or refuse.

    Args:
        nodes: The nodes.
        guard: The cluster's guard.
        initialize: redis-py's function, which reads the whole topology.
        tries_again: True if the client tries a call again that has failed.
    """

    def __init__(
        self,
        nodes: Nodes,
        guard: Guard,
        initialize: Callable[..., None],
        tries_again: Callable[[], bool],
    ) -> None:
        self._nodes = nodes
        self._guard = guard
        self._initialize = initialize
        self._tries_again = tries_again
        self._stopped = threading.Event()
        self._forget()
        renew_after_fork(self)

    def _forget(self) -> None:
        self._suspected = False
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    # --- forks -----------------------------------------------------------------------------------

    def pause(self, seconds: float) -> bool:  # noqa: ARG002
        """See ForkAware."""
        return True

    def unpause(self) -> None:
        """See ForkAware."""

    def reset_in_child(self) -> None:
        """See ForkAware. The thread of the parent may have held redis-py's locks, too."""
        self._forget()
        manager = self._nodes.manager
        manager._lock, manager._initialization_lock = threading.RLock(), threading.RLock()  # noqa: SLF001

    # --- looking ---------------------------------------------------------------------------------

    def suspect(self) -> None:
        """Looks the topology up soon: a node has failed, has refused a call, or has lost a slot."""
        if self._suspected or self._stopped.is_set() or isinstance(current_call.get(), Lookup):
            return
        self._suspected = True
        with self._lock:
            if self._thread is None:
                self._thread = daemon("guardrails-cluster-topology", self._run)
                self._thread.start()

    def refresh(self, **options: Any) -> None:
        """Stands for redis-py's ``initialize``, which a failing call makes before its error is raised."""
        if self._guard.mode != "enforce":
            self._initialize(**options)
            self._nodes.drop_absent()
            return
        if not self._tries_again():
            self.suspect()  # a look-up in this call would only delay its error
            return
        call = current_call.get()
        left = None if call is None else call.left()
        self.look_up(LOOKUP_LIMIT if left is None else min(left, LOOKUP_LIMIT))

    def look_up(self, seconds: float) -> None:
        """Follows the topology as a node that works knows it; waits for a look-up that is under way."""
        if self._nodes.refuses_all or seconds <= 0:
            return
        if not self._looking.acquire(blocking=False):
            if self._looking.acquire(timeout=seconds):
                self._looking.release()
            return
        try:
            with Lookup(self._guard, seconds):
                self._follow(self._changes())
        except Exception as error:  # noqa: BLE001 - the call raises its own; the next look-up may find a node
            log.debug("guard %r: the topology was not read: %r", self._guard.name, error)
        finally:
            self._looking.release()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(LOOKUP_LIMIT)

    def _changes(self) -> Mapping[range, list[Any]] | None:
        for node in self._nodes.working():
            try:
                sections = node.redis_connection.execute_command("CLUSTER SLOTS")
            except Exception:  # noqa: BLE001, S112 - it is evidence already
                continue
            return self._nodes.changes(sections, node.host)
        return None

    def _follow(self, changes: Mapping[range, list[Any]] | None) -> None:
        if changes is None:
            self._initialize(disconnect_startup_nodes_pools=False)  # those of a node that works
            self._nodes.drop_absent()
        elif changes:
            self._nodes.move(changes)
            self._nodes.manager._event_dispatcher.dispatch(AfterSlotsCacheRefreshEvent())  # noqa: SLF001

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._suspected or self._stopped.is_set():
                    self._thread = None
                    return
                self._suspected = False
            started = monotonic()
            self.look_up(LOOKUP_LIMIT)
            self._stopped.wait(max(0.0, LOOKUP_INTERVAL - (monotonic() - started)))
