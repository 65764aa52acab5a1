"""What a worker and a store of leases say to each other, and what a store writes down.

Pure. Depends on nothing of ours. Numbers are whole and times are milliseconds, so that Python and Lua compute
the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Self

__all__ = [
    "EPOCH",
    "FORGET_AFTER",
    "GRANTED",
    "LEASE",
    "LEAVING",
    "LEFT",
    "LIVE",
    "MOST_CONNECTIONS",
    "MOST_DIGITS_OF_A_COUNT",
    "OUT",
    "ROOM_FOR_NEW",
    "SILENT",
    "SILENT_AFTER",
    "SKEW",
    "STALE",
    "TAKEN",
    "Record",
    "Reply",
    "Request",
    "read_epoch",
]

LEASE = 3000
"""Milliseconds for which a grant holds without a renewal."""

SILENT_AFTER = 2500
"""Milliseconds without a renewal after which a worker counts as silent: it has missed two. A new worker may
then borrow its floor, and asks every quarter of a second: so it has the floor within one lease, even if it
starts at the moment at which that one was killed, and no other has a connection to give."""

FORGET_AFTER = 15000
"""Milliseconds for which a silent worker's connections stay reserved."""

LEAVING = 500
"""Milliseconds for which the connections of a worker that has left stay reserved: servers take a moment
to see a connection closed."""

ROOM_FOR_NEW = 10
"""This part of a budget, a tenth, stays free for new workers while no worker wants it."""

SKEW = 1000
"""Milliseconds by which the store's clock may step back before its data are treated as lost."""

MOST_CONNECTIONS = 1_000_000
"""The largest budget."""

EPOCH = "@"
"""The field with the time of the last renewal, and the end of the learning period."""

GRANTED, STALE, TAKEN = 0, 1, 2
"""The kinds of a reply. ``STALE``: a later request of the same worker came first; nothing was changed.
``TAKEN``: another process uses the same ``worker_id``."""

LIVE, SILENT, LEFT, OUT = 1, 2, 3, 4
"""The states of a worker. ``LEFT``: it has left and is reserved for; ``OUT``: it is not any more."""

MOST_DIGITS_OF_A_COUNT = 7
"""Number of digits of `MOST_CONNECTIONS`."""

_MOST_DIGITS = 15
_LONGEST = 300
_RECORD = re.compile(r"2 ([0-9a-f]+) ([0-9]+) ([01]) ([01])" + r" ([0-9]+)" * 9 + r" ([!-~]*)")
_EPOCH = re.compile(r"2 ([0-9]+) ([0-9]+)")


class Request(NamedTuple):
    """What a worker asks for one budget.

    Attributes:
        worker: Its ``worker_id``.
        instance: A random number of its process, in hexadecimal.
        seq: Number of the request; it only grows.
        fresh: True until the worker has had a reply. Then it may take over the record of another process.
        has: Connections that are open.
        cap: Connections that it may have open until it has a reply; at least ``has``.
        safe: Connections that it will keep without contact.
        wants: Connections that it could use.
        minimum: Its floor.
        most: The capacity of its pool.
        budget: The budget that its code names.
        host: The name of its machine, for people.
    """

    worker: str
    instance: str
    seq: int
    fresh: bool
    has: int
    cap: int
    safe: int
    wants: int
    minimum: int
    most: int
    budget: int
    host: str = ""


class Reply(NamedTuple):
    """What a store answers.

    Attributes:
        status: `GRANTED`, `STALE` or `TAKEN`; the other attributes count for the first only.
        grant: Connections that the worker may have open.
        safe: Connections that it may keep without contact.
        workers: Number of workers known.
        budget: The budget that counts: the smallest that a worker names.
        largest: The largest that a worker names.
        learning: True while the store learns what there is, after it lost its data.
        borrowed: Connections of the grant that may be in use elsewhere; see `LeaseTable.renew`.
    """

    status: int
    grant: int = 0
    safe: int = 0
    workers: int = 0
    budget: int = 0
    largest: int = 0
    learning: bool = False
    borrowed: int = 0


@dataclass(slots=True)
class Record:
    """What a store knows of one worker. A renewal changes it in place.

    Attributes:
        left: True if it has left.
        extra: True if its fair share has one of the connections that are left when the others are divided.
        cap: Connections that it may have open.
        safe: Connections that it may keep without contact.
        renewed: Time of its last renewal.
        grant: Its last grant.
    """

    instance: str
    seq: int
    left: bool
    extra: bool
    cap: int
    safe: int
    wants: int
    minimum: int
    most: int
    budget: int
    renewed: int
    has: int
    grant: int
    host: str

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Reads a record; None if it is none."""
        found = _RECORD.fullmatch(text) if len(text) <= _LONGEST else None
        if found is None:
            return None
        instance, seq, left, extra, *numbers, host = found.groups()
        renewed = numbers.pop(6)
        if max(len(seq), len(renewed)) > _MOST_DIGITS or max(map(len, numbers)) > MOST_DIGITS_OF_A_COUNT:
            return None
        cap, safe, wants, minimum, most, budget, has, grant = map(int, numbers)
        return cls(
            instance,
            int(seq),
            left == "1",
            extra == "1",
            cap,
            safe,
            wants,
            minimum,
            most,
            budget,
            int(renewed),
            has,
            grant,
            host,
        )

    def write(self) -> str:
        """Returns the text of the record."""
        return (
            f"2 {self.instance} {self.seq} {self.left:d} {self.extra:d} {self.cap} {self.safe} {self.wants} "
            f"{self.minimum} {self.most} {self.budget} {self.renewed} {self.has} {self.grant} {self.host}"
        )

    def state(self, now: int) -> int:
        """Returns `LIVE`, `SILENT`, `LEFT` or `OUT`; 0 if it is to be forgotten."""
        age = now - self.renewed
        if age < -SKEW or age > FORGET_AFTER:
            return 0
        if self.left:
            return LEFT if age <= LEAVING else OUT
        return LIVE if age <= SILENT_AFTER else SILENT

    def changes_at(self, state: int) -> int:
        """Returns the time at which a state ends without a renewal."""
        return self.renewed + 1 + {LIVE: SILENT_AFTER, LEFT: LEAVING}.get(state, FORGET_AFTER)

    def is_silent(self, now: int) -> bool:
        """True if it has missed its renewals and has not left."""
        return self.state(now) == SILENT

    def reserved(self, now: int) -> int:
        """Returns the connections that are reserved for it: all that it may have open.

        A silent worker first shrinks to its safe share and later grows to it.
        """
        state = self.state(now)
        return max(self.cap, self.safe) if state == SILENT else self.cap if state in {LIVE, LEFT} else 0


def read_epoch(text: str) -> tuple[int, int] | None:
    """Reads the field `EPOCH`: the last renewal and the end of the learning period; None if it is hostile."""
    found = _EPOCH.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None or max(map(len, found.groups())) > _MOST_DIGITS:
        return None
    last, until = map(int, found.groups())
    return last, until
