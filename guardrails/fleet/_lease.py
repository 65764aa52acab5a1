"""The rule by which a store grants leases on one connection budget. Pure: the time is an argument.

This is the rule's only statement in Python: the SQLite store and the simulators run it. ``lease.lua`` says
the same to Redis, and a test holds the two equal. Depends on the records, the table of members and the sums.

The rule needs only sums over the other workers, so one renewal costs about the same among ten workers and
among ten thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Self

from guardrails.fleet._lease_sums import LeaseSums, fair_share
from guardrails.fleet._records import (
    EPOCH,
    GRANTED,
    LEASE,
    LIVE,
    OUT,
    SKEW,
    STALE,
    TAKEN,
    Record,
    Reply,
    Request,
    read_epoch,
)
from guardrails.fleet._table import MemberTable

__all__ = ["LeaseTable", "leave", "members", "renew"]


class LeaseTable:
    """The workers of one budget, and the rule.

    Attributes:
        members: The workers by name; those that have left stay for a while, so that an earlier request
            that arrives late is known as such.
        sums: The sums over them.
        revision: It grows whenever the sums change, and when learning begins or ends. A worker whose request
            says what its last one said, in the same revision as after that, gets the same reply.
        last: The time of the last renewal; -1 before the first.
        until: The end of the learning period.
    """

    def __init__(self) -> None:
        self.sums = LeaseSums()
        self.members: MemberTable[Record] = MemberTable(self.sums)
        self.revision = 0
        self.last = self.until = -1

    @classmethod
    def read(cls, fields: Mapping[str, str], now: int) -> Self:
        """Reads the texts of a store. What cannot be read is treated as absent."""
        table = cls()
        table.last, table.until = read_epoch(fields.get(EPOCH, "")) or (-1, -1)
        now = max(now, table.last) if table.last <= now + SKEW else now
        for name, text in fields.items():
            record = None if name == EPOCH else Record.read(text)
            if record is not None:
                table.members.put(name, record, now)
        return table

    def epoch(self) -> str:
        """Returns the text of the field `EPOCH`."""
        return f"2 {self.last} {self.until}"

    def renew(self, asked: Request, now: int) -> Reply:
        """Renews one worker's lease, and grants it what it may have.

        A worker's grant grows only if everything that is reserved then fits into the budget. No worker gets
        more than it has and its floor while others lack a part of their floors. There are two exceptions for
        a worker below its floor. It may borrow the floor from what is reserved for silent workers, who are
        dead more often than cut off; and it may keep the floor that it has open.

        A borrowed floor or a lower budget can leave more reserved than the budget. Then no grant grows, and
        each worker that asks shrinks to its fair share. The fair shares fit into the budget, so the excess is
        gone when each worker has asked. The workers that ask first lose no more than the others.

        Args:
            asked: The request.
            now: The store's time.
        """
        now = self._note_contact(now)
        learning = now < self.until
        own, state = self.members.find(asked.worker)
        is_new = own is None
        refused = None if own is None else _refusal(own, asked)
        if refused is not None:
            return Reply(refused)
        sums = self.sums
        before = None if own is None else _weight(own, state)
        kept = 0 if own is None or state == OUT else min(asked.cap, own.cap)
        own = self._without_grant(own, state, asked, now)
        budget, workers = min(sums.budgets), sums.live + sums.silent
        given = budget - sums.held_by_silent - sums.held_by_left
        room = given - sums.cap
        floor, extra = min(asked.minimum, asked.most), False
        # What becomes free goes to workers below their floor first, and to a new one after those that wait.
        free = room - sums.missing(floor)
        for_floor = free if is_new else room
        if learning:
            grant = asked.cap
        else:
            target, extra = fair_share(given, sums, own)
            grant = min(target, max(room, kept), max(asked.cap, free, min(floor, for_floor)))
        if grant < floor:  # what it has open already is no more than it had; what it borrows is counted
            lendable = floor if learning else for_floor + sums.held_by_silent
            grant = max(0, grant, min(floor, lendable), min(floor, asked.has))
        safe = min(budget // workers, budget - sums.safe)
        safe = max(0, min(safe, asked.safe) if learning else safe)
        borrowed = max(0, grant - max(0, room, asked.cap))
        own.instance, own.seq, own.renewed, own.has, own.host = (
            asked.instance, asked.seq, now, asked.has, asked.host,
        )  # fmt: skip
        own.cap, own.safe, own.extra, own.grant = max(asked.cap, grant), max(asked.safe, safe), extra, grant
        sums.reserve(own, 1)
        self.revision += before != _weight(own, LIVE)
        return Reply(GRANTED, grant, safe, workers, budget, max(sums.budgets), learning, borrowed)

    def _without_grant(self, own: Record | None, state: int, asked: Request, now: int) -> Record:
        """The worker's record, which adds only its demand and its budget to the sums.

        So it is while the grant is computed.
        """
        if own is not None and state == LIVE and _asks_like_before(own, asked):
            self.sums.reserve(own, -1)
            return own
        own = _record(asked, now)
        own.cap = own.safe = 0
        self.members.put(asked.worker, own, now)
        return own

    def leave(self, asked: Request, now: int) -> None:
        """Notes that a worker leaves: what the worker has is reserved for `LEAVING` and then free."""
        now = self._note_contact(now)
        own = self.members.get(asked.worker)
        if own is not None and own.instance == asked.instance:
            left = _record(asked, now)
            left.left, left.cap, left.safe = True, asked.has, 0
            self.members.put(asked.worker, left, now)
            self.revision += 1

    def _note_contact(self, now: int) -> int:
        """Notes that the store was asked, and what time has changed; returns the time that counts.

        That stands still while the clock is back a little.

        The store learns for one lease after its data were lost, after its clock jumped, and after no worker
        has asked for the time of a lease: then it was out of reach, and what it knows is old. After a jump
        back it forgets everything.
        """
        learned = self.last < self.until
        if self.last > now + SKEW:
            self.members.clear()
            self.last = -1
            self.revision += 1
        if self.last < 0 or now - self.last > LEASE:
            self.until = now + LEASE
        now = max(now, self.last)
        self.until = min(self.until, now + LEASE)
        self.last = now
        self.revision += self.members.settle(now) or learned != (now < self.until)
        return now


def members(fields: Mapping[str, str], now: int) -> dict[str, Record]:
    """Returns the workers in the texts of a store, in the order of their names."""
    return dict(sorted(LeaseTable.read(fields, now).members.items()))


def renew(fields: MutableMapping[str, str], asked: Request, now: int) -> Reply:
    """Renews one worker's lease in the texts of a store: a field for each worker, and `EPOCH`.

    Args:
        fields: The texts; they are changed.
        asked: The request.
        now: The store's time.
    """
    table = LeaseTable.read(fields, now)
    reply = table.renew(asked, now)
    _write(table, asked.worker, fields)
    return reply


def leave(fields: MutableMapping[str, str], asked: Request, now: int) -> None:
    """Notes in the texts of a store that a worker leaves."""
    table = LeaseTable.read(fields, now)
    table.leave(asked, now)
    _write(table, asked.worker, fields)


def _write(table: LeaseTable, changed: str, fields: MutableMapping[str, str]) -> None:
    for name in [name for name in fields if name not in table.members]:
        del fields[name]
    own = table.members.get(changed)
    if own is not None:
        fields[changed] = own.write()
    fields[EPOCH] = table.epoch()


def _record(asked: Request, now: int) -> Record:
    return Record(
        asked.instance,
        asked.seq,
        False,
        False,
        asked.cap,
        asked.safe,
        asked.wants,
        asked.minimum,
        asked.most,
        asked.budget,
        now,
        asked.has,
        0,
        asked.host,
    )


def _refusal(own: Record, asked: Request) -> int | None:
    """Why a request is not granted: a newer one came before it, or another process has the worker's name."""
    if own.instance == asked.instance:
        return STALE if asked.seq <= own.seq else None
    return None if asked.fresh or own.left else TAKEN


def _asks_like_before(own: Record, asked: Request) -> bool:
    return (
        own.wants == asked.wants
        and own.minimum == asked.minimum
        and own.most == asked.most
        and own.budget == asked.budget
    )


def _weight(record: Record, state: int) -> tuple[object, ...]:
    """What a record adds to the sums, or more."""
    return (
        state,
        record.cap,
        record.safe,
        record.extra,
        record.budget,
        record.most,
        record.minimum,
        record.wants,
    )
