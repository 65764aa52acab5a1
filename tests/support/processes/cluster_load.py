"""Reads the keys of a cluster until its input ends, then writes what its calls came to as JSON.

Arguments: how, the port of a node, and a JSON list of keys. ``sync`` and ``async`` is a cluster client with a
guard, ``bare`` one without. ``direct`` asks the node of each of these keys by a client of its own, without a
cluster client: what makes these calls slower comes from the servers and the machine.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import redis
import redis.cluster

from guardrails import BreakerPolicy
from support.cluster_lab import AsyncCluster, SyncCluster, value_of

how, port, keys = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
PROMPT = BreakerPolicy(consecutive_failures=3, wait_duration_in_open_state=0.5, open_jitter=0)


class Direct(SyncCluster):
    """A client for each node, made once. Other keys than those given are not asked for."""

    def make(self):
        cluster = SyncCluster.make(self)
        ports = {key: cluster.get_node_from_key(key).port for key in keys}
        clients = {each: redis.Redis(port=each, socket_timeout=20) for each in set(ports.values())}
        self.of_key = {key: clients[each] for key, each in ports.items()}
        return cluster

    def read(self, _, key):
        return self.of_key[key].get(key) if key in self.of_key else value_of(key)


nodes = SimpleNamespace(nodes=[SimpleNamespace(port=port)])
if how == "direct":
    lab = Direct(nodes)
    load = lab.load(lab.read, guarded=False)
elif how == "bare":
    load = SyncCluster(nodes, socket_timeout=0.5).load(guarded=False)
else:
    lab = (AsyncCluster if how == "async" else SyncCluster)(nodes)
    load = lab.load(name="shards", timeout=2.0, breaker=PROMPT)
with load as running:
    print("ready", flush=True)
    sys.stdin.read()
json.dump(running.calls, sys.stdout)
