"""A pool without connections, for guards that are attached to one."""

from __future__ import annotations

from guardrails._guard.pool_snapshot import Distribution, PoolSnapshot

NUMBERS = (
    "open",
    "in_use",
    "idle",
    "overflow",
    "waiting",
    "checkouts",
    "waits",
    "timeouts",
    "exhausted",
    "opened",
    "closed",
    "invalidated",
)
TIMES = ("wait", "hold", "use", "connect")


class FakePool:
    """An integration's attachment, whose figures are 0 unless they are given."""

    most = 5

    def __init__(self, upkeep=None, **figures):
        self.upkeep = upkeep
        none = dict.fromkeys(NUMBERS, 0) | dict.fromkeys(TIMES, Distribution())
        settings = {"system": "postgresql", "capacity": 5, "pool_size": None, "routes": ()}
        self.seen = PoolSnapshot(**(none | settings | figures))

    def detach(self):
        """See Attachment."""

    def figures(self):
        """See Attachment."""
        return self.seen
