"""The rule by which a store grants leases on one connection budget. Pure: the time is an argument.

This is the rule's only statement in Python: the SQLite store and the simulator run it. ``lease.lua`` says the
same to Redis, and a test holds the two equal. Depends on the records.

A store keeps one mapping of texts for each budget: a field for each worker, and `EPOCH`. What cannot be read
is treated as absent. A lease here is a share of connections; that of a circuit breaker is a probe's permit.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace

from guardrails.fleet._records import (
    EPOCH,
    GRANTED,
    LEASE,
    LEAVING,
    ROOM_FOR_NEW,
    SKEW,
    STALE,
    TAKEN,
    Record,
    Reply,
    Request,
    read_epoch,
)

__all__ = ["leave", "members", "renew", "reserved"]


def reserved(record: Record, now: int) -> int:
    """Returns the connections that are reserved for a worker: all that it may have open.

    A silent worker first shrinks to its safe share and later grows to it.
    """
    if record.left:
        return record.cap if now - record.renewed <= LEAVING else 0
    return max(record.cap, record.safe) if record.is_silent(now) else record.cap


def members(fields: Mapping[str, str], now: int) -> dict[str, Record]:
    """Returns the workers that a store knows, in the order of their names."""
    found = {name: Record.read(fields[name]) for name in sorted(fields) if name != EPOCH}
    return {name: record for name, record in found.items() if record is not None and not record.is_over(now)}


def renew(fields: MutableMapping[str, str], request: Request, now: int) -> Reply:
    """Renews one worker's lease, and grants it what it may have.

    A grant is never above the budget minus all that is reserved for others, with two exceptions for a worker
    below its floor. It may borrow the floor from what is reserved for silent workers, who are dead more often
    than cut off; and it may keep the floor that it has open.

    Args:
        fields: The store's mapping for this budget; it is changed.
        request: The request.
        now: The store's time.
    """
    learning = _note_contact(fields, now)
    known = members(fields, now)
    for name in fields.keys() - known.keys() - {EPOCH}:
        del fields[name]
    own = known.get(request.worker)
    if own is not None and own.instance == request.instance and request.seq <= own.seq:
        return Reply(STALE)
    if own is not None and own.instance != request.instance and not (request.fresh or own.left):
        return Reply(TAKEN)
    asker = _record_of(request, now)
    others = [record for name, record in known.items() if name != request.worker]
    known = dict(sorted({**known, request.worker: asker}.items()))
    budgets = [record.budget for record in known.values() if not record.left]
    count = sum(not record.left for record in known.values())
    budget = min(budgets)
    room = budget - sum(reserved(record, now) for record in others)
    silent = sum(reserved(record, now) for record in others if record.is_silent(now))
    floor = min(request.minimum, request.most)
    if learning:
        grant = request.cap
    else:
        taken = silent + sum(reserved(record, now) for record in others if record.left)
        live = {name: record for name, record in known.items() if not (record.left or record.is_silent(now))}
        grant = min(_target(budget - taken, live, request.worker), room)
    if grant < floor:  # what it has open already is no more than it had; what it borrows is counted
        lendable = floor if learning else room + silent
        grant = max(0, grant, min(floor, lendable), min(floor, request.has))
    safe = min(budget // count, budget - sum(record.safe for record in others if not record.left))
    safe = max(0, min(safe, request.safe) if learning else safe)
    fields[request.worker] = replace(
        asker, cap=max(request.cap, grant), safe=max(request.safe, safe), grant=grant
    ).write()
    borrowed = max(0, grant - max(0, room, request.cap))
    return Reply(GRANTED, grant, safe, count, budget, max(budgets), learning, borrowed)


def leave(fields: MutableMapping[str, str], request: Request, now: int) -> None:
    """Notes a goodbye: what the worker has is reserved for `LEAVING` and then free.

    The record stays for a while, so that an earlier request that arrives late is known as such.
    """
    own = Record.read(fields.get(request.worker, ""))
    if own is not None and own.instance == request.instance:
        fields[request.worker] = replace(_record_of(request, now), left=True, cap=request.has, safe=0).write()


def _record_of(request: Request, now: int) -> Record:
    return Record(
        request.instance,
        request.seq,
        False,
        request.cap,
        request.safe,
        request.wants,
        request.minimum,
        request.most,
        request.budget,
        now,
        request.has,
        0,
        request.host,
    )


def _note_contact(fields: MutableMapping[str, str], now: int) -> bool:
    """Notes that the store was asked; returns True while it learns.

    It learns for one lease after its data were lost, after its clock jumped, and after nobody has asked for a
    lease: then it was out of reach, and what it knows is old.
    """
    last, until = read_epoch(fields.get(EPOCH, "")) or (-1, -1)
    if last < 0 or last > now + SKEW or now - last > LEASE:
        until = now + LEASE
    until = min(until, now + LEASE)
    fields[EPOCH] = f"1 {now} {until}"
    return now < until


def _target(budget: int, live: Mapping[str, Record], worker: str) -> int:
    """Returns a worker's fair share: max-min by demand, then the rest in the same way.

    Every worker gets its floor first. What is missing is taken from those who want most. What is left over
    goes to those who have least, for the next burst. But a tenth of the budget is given only to those who
    want it: a new worker gets its floor from it at once, while others need a renewal to make room.
    """
    low = [min(record.minimum, record.most) for record in live.values()]
    wanted = [
        min(max(record.wants, floor), record.most) for record, floor in zip(live.values(), low, strict=True)
    ]
    high = [record.most for record in live.values()]
    own = list(live).index(worker)
    if sum(low) >= budget:
        return low[own]
    if sum(wanted) >= budget:
        return _share(budget, low, wanted, own)
    budget = max(sum(wanted), budget - max(1, budget // ROOM_FOR_NEW))
    if sum(high) <= budget:
        return high[own]
    return _share(budget, wanted, high, own)


def _share(budget: int, low: Sequence[int], high: Sequence[int], own: int) -> int:
    """Returns one share of the most even division of a budget with a lower and an upper bound for each."""
    least, most = 0, budget  # the highest level at which the shares fit is in [least, most]
    while least < most:
        level = (least + most + 1) // 2
        if sum(min(max(level, a), b) for a, b in zip(low, high, strict=True)) <= budget:
            least = level
        else:
            most = level - 1
    shares = [min(max(least, a), b) for a, b in zip(low, high, strict=True)]
    left = budget - sum(shares)
    growing = [index for index, (a, b) in enumerate(zip(low, high, strict=True)) if a <= least < b]
    return shares[own] + (own in growing[:left])
