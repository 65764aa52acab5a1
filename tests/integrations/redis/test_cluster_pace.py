"""Whether the keys of other nodes are as fast while a real cluster changes, beside unguarded clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from guardrails.testing.cluster import ValkeyCluster
from support.cluster_lab import KEYS, Load, keys_of, percentile
from support.paths import PROCESSES, python_path

ROOM = 0.02
"""Seconds by which 99 % of the calls may be later: the two cores serve three clients and six nodes."""


class Reader:
    """A load in a process of its own, so that no other client's work delays its calls."""

    def __init__(self, how, port, keys):
        words = [sys.executable, PROCESSES / "cluster_load.py", how, str(port), json.dumps(sorted(keys))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(
            words, env=os.environ | {"PYTHONPATH": python_path()}, text=True, **pipes
        )

    def begin(self):
        assert self.process.stdout.readline() == "ready\n"

    def finish(self):
        """Its calls; see `Load`."""
        answer, _ = self.process.communicate("", timeout=60)
        return Load(calls=[tuple(call) for call in json.loads(answer)])


@contextmanager
def readers(port, keys, *names):
    found = {how: Reader(how, port, keys) for how in names}
    try:
        for reader in found.values():
            reader.begin()
        yield found
    finally:
        for reader in found.values():
            reader.process.kill()
            reader.process.communicate()


class Change:
    """A change of the topology that is made again and again, between quiet phases of the same length.

    Attributes:
        others: The keys of the nodes that have nothing to do with it.
    """

    def __init__(self, cluster):
        self.cluster = cluster
        self.primary, self.replica = cluster.nodes[0], cluster.nodes[3]
        self.others = set(KEYS) - set(keys_of(self.primary))

    def make(self):
        raise NotImplementedError

    def undo(self):
        self.primary, self.replica = self.replica, self.primary
        self.cluster.await_healthy()

    def spans(self, rounds):
        """Makes the change so often; returns when nothing happened, and when something did."""
        quiet, busy = [], []
        for _ in range(rounds):
            begin = time.monotonic()
            time.sleep(1.5)
            fault_at = time.monotonic()
            self.make()
            quiet.append((begin, fault_at))
            busy.append((fault_at, time.monotonic()))
            self.undo()
            time.sleep(1.5)  # its circuit closes again, its replica has all
        return quiet, busy


class Killed(Change):
    def make(self):
        self.primary.kill()
        self.cluster.await_primary(self.replica)
        time.sleep(1.0)

    def undo(self):
        self.primary.restart()
        super().undo()


class Promoted(Change):
    def make(self):
        self.cluster.promote(self.replica)
        time.sleep(1.5)


class Moved(Change):
    """Slots of one primary to another and back. Their keys are few, and all other keys are the others."""

    def __init__(self, cluster):
        super().__init__(cluster)
        self.moving = keys_of(self.primary)[:4]
        self.others = set(KEYS) - set(self.moving)
        self.target = cluster.nodes[1]

    def make(self):
        for key in self.moving:
            slot = self.cluster.slot(key)
            self.cluster.begin_move(slot, self.primary, self.target)
            self.cluster.move_key(key, self.primary, self.target)
            time.sleep(0.2)
            self.cluster.end_move(slot, self.target)
            time.sleep(0.2)

    def undo(self):
        self.primary, self.target = self.target, self.primary


def slower(load, spans, keys, share):
    """The times of some calls in the quiet and in the busy spans, in seconds."""
    return [
        percentile([call for begin, end in each for call in load.between(begin, end, keys)], share)
        for each in spans
    ]


@pytest.mark.slow  # six to eighteen phases of seconds
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("change", [Killed, Promoted, Moved])
def test_the_other_keys_keep_their_pace(how, change):
    """At most twice as slow, as far as the servers and the machine are not slower themselves."""
    with ValkeyCluster.start() as cluster:
        made = change(cluster)
        for _ in range(3):  # the machine may be busier in only one of the phases
            with readers(cluster.nodes[1].port, made.others, how, "direct", "bare") as found:
                time.sleep(0.5)
                spans = made.spans(2)
                loads = {name: reader.finish() for name, reader in found.items()}
            (before, during), (direct_before, direct_during), bare = (
                slower(loads[name], spans, made.others, 0.99) for name in (how, "direct", "bare")
            )
            calls = [
                call for each in spans for span in each for call in loads[how].between(*span, made.others)
            ]
            assert {call[3] for call in calls} == {"ok"}
            assert len(calls) > 1000
            if during <= 2 * before * max(1.0, direct_during / direct_before) + ROOM:
                break
    print(f"p99 {before * 1e3:.1f} ms -> {during * 1e3:.1f} ms", end="; ")
    print(f"direct {direct_before * 1e3:.1f} -> {direct_during * 1e3:.1f}", end="; ")
    print(f"bare {bare[0] * 1e3:.1f} -> {bare[1] * 1e3:.1f}")
    assert during <= 2 * before * max(1.0, direct_during / direct_before) + ROOM
