"""Groups of workers that rest, by what the rule of leases knows of them. Pure.

Depends on the rule of leases.
"""

from __future__ import annotations

from dataclasses import replace

from guardrails.fleet._lease_sums import Division
from guardrails.fleet._records import LIVE, Record
from guardrails.fleet._table import NEVER
from guardrails.simulation.fleet_worker import Worker

__all__ = ["Group", "RestingRecord"]


class RestingRecord(Record):
    """The record of a worker that renews its lease all the time."""

    __slots__ = ()

    def state(self, now: int) -> int:  # noqa: ARG002 - as the table calls it
        """Returns `LIVE`."""
        return LIVE

    def changes_at(self, state: int) -> int:  # noqa: ARG002 - likewise
        """Returns `NEVER`."""
        return NEVER


class Group:
    """Resting workers that the rule cannot tell apart.

    Args:
        record: The record of one of them.
        safe: The safe share of each.

    Attributes:
        size: Number of workers.
        asleep: Those whose next request need not be looked at.
        is_concerned: True if the rule would give another reply to each.
        gives: True if the first to ask loses its extra connection when there are too many; ``takes`` if the
            first to ask gets one of those that are left.
    """

    __slots__ = ("_extra", "_grant", "_record", "asleep", "gives", "is_concerned", "safe", "size", "takes")

    def __init__(self, record: Record, safe: int) -> None:
        self._record, self._extra, self._grant, self.safe = replace(record), record.extra, record.grant, safe
        self.size = 0
        self.asleep: dict[Worker, None] = {}  # in the order in which they came
        self.is_concerned = self.gives = self.takes = False

    def review(self, division: Division, *, is_safe: bool) -> None:
        """Notes what a division means to its workers."""
        may_grow = division.may_have_more(self._record)
        share = division.share(self._record) + self._extra
        self.is_concerned = not is_safe or share != self._grant or (self._extra and not may_grow)
        self.gives, self.takes = self._extra, may_grow and not self._extra

    def looks(self, balance: int) -> bool:
        """True if the next request of each is to be looked at."""
        return self.is_concerned or (self.gives if balance > 0 else self.takes and balance < 0)
