"""Compartments that form by themselves, and the doors that keep each to its share.

Depends on keys and doors; what a key stands for (a function, a route) is for others to say.

As long as there is one workload, it is the guard: its calls pass the guard's door and no other, so it has
every slot, one circuit and one line on every page. With the second workload the guard is *divided*. From then
on each workload has a door of its own in front of the guard's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from typing import Any

from guardrails._core.breaker import Change
from guardrails._core.gate import Gate, Refusal
from guardrails._core.shares import Member, Shares
from guardrails._door import Door
from guardrails._fork import ForkedLock

__all__ = ["DEFAULT", "MOST", "OTHER", "PartDoor", "Sharing"]

DEFAULT, OTHER = "default", "other"
"""The compartment of calls that nothing is known about, and the one of all beyond the first `MOST`."""

MOST = 64
"""Compartments that form by themselves. Each is a window of results and a row on every page."""

_INHERITED_STATES = ("disabled", "metrics_only")
"""States set by hand that only make sense for all of a guard's circuits at once."""

_COUNTS = ("succeeded", "failed", "slow", "abandoned", "late")


class Sharing:
    """The compartments of one guard, as a whole.

    Args:
        door: The guard's door.

    Attributes:
        formed: The compartments that have formed by themselves, by key.
        sole: The door of the only one used so far, as long as the guard is not divided.
        divided: Whether calls pass the doors of their compartments.
        moving: The one that still holds slots from before it had a door; None if none does.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._lock = ForkedLock()
        self.shares = Shares(door.gate.bulkhead.limit)
        self._elastic: dict[Member, PartDoor] = {}
        self._own: list[PartDoor] = []
        self.moving: Member | None = None
        self.formed: dict[str, Any] = {}
        self.sole: Door | None = None
        self.divided = False

    # --- who they are --------------------------------------------------------------------------

    def find(self, key: str, form: Callable[[str], Any]) -> Any:
        """The compartment of a key, formed if it is new; beyond `MOST` the one that all others share."""
        part = self.formed.get(key)
        if part is not None:
            return part
        with self._lock:
            if len(self.formed) >= MOST and key not in self.formed:
                key = OTHER
            if key not in self.formed:
                self.formed[key] = form(key)
            return self.formed[key]

    def is_divided_for(self, door: Door) -> bool:
        """True if a call of a compartment passes the compartment's own door; if not, only the guard's.

        The second compartment that is used divides the guard. What nothing is known about makes room for the
        first that has a name: the queries of a start-up are no workload of their own.
        """
        if self.divided or door is self.sole:
            return self.divided
        with self._lock:
            if not self.divided:
                sole, slots = self.sole, self._door.gate.bulkhead
                if sole is None or (sole.name == DEFAULT and not slots.taken and not slots.queue):
                    self.sole = door
                else:
                    self.divide()
        return self.divided

    def divide(self) -> None:
        """Gives each compartment its door; the one there was so far takes its past along."""
        with self._lock:
            if not self.divided and isinstance(self.sole, PartDoor):
                door = self.sole
                door.step(_take_over_the_past, door.gate, self._door)
                if door.gate.breaker.state == "open":  # what opened the guard's says nothing about the others
                    self._door.step(self._door.gate.turn, "reset", "divided")
                door.member.asked = self._door.clock()
                if door.member in self._elastic:
                    self.moving = door.member  # what it holds now, it holds of the guard alone
                    self._fit_all((door.member,))
            self.divided = True

    # --- their doors ---------------------------------------------------------------------------

    def admit(self, door: PartDoor, *, elastic: bool) -> None:
        """Makes a door one of these.

        Args:
            door: A compartment's.
            elastic: Whether the compartment has formed by itself, so that its number of slots follows from
                who is active; else it is its own.
        """
        door.member = self.shares.join(door.gate.bulkhead)
        door.sharing = self
        if elastic:
            self._elastic[door.member] = door
            self._own.append(door)
            door.tells_of_calls = False  # each call's end is told once, by the guard
            state = self._door.gate.breaker.state
            if state in _INHERITED_STATES:
                door.step(_turn_quietly, door.gate, state)

    def ask(self, door: PartDoor) -> None:
        """Gives every compartment the slots it may have, now that one asks for a slot."""
        with self._lock:
            changed = self.shares.ask(door.clock(), door.member)
            if self.moving is door.member and door.member not in changed:
                changed = (*changed, door.member)
        self._fit_all(changed)

    def fix(self, door: Door) -> None:
        """Leaves a compartment the number of slots it was given by hand."""
        if isinstance(door, PartDoor):
            self._elastic.pop(door.member, None)
            self.divide()

    def resize(self, total: int) -> None:
        """Follows the guard's number of slots."""
        self.shares.total = total
        self._fit_all(tuple(self._elastic))

    def turn(self, transition: str) -> None:
        """Follows the guard, whose state was changed by hand; except where that refuses everybody anyway."""
        if transition in {"reset", *_INHERITED_STATES}:
            for door in list(self._own):
                door.step(_turn_quietly, door.gate, transition)

    def _fit_all(self, parts: tuple[Member, ...]) -> None:
        for part in parts:
            door = self._elastic.get(part)
            if door is not None:
                door.step(self._fit, door)

    def _fit(self, now: float, door: PartDoor) -> None:
        # Read under the compartment's own lock: of two threads that come here, the last sets what holds now.
        gate = door.gate
        limit = self.shares.limit(door.member, _oldest(now, gate))
        slots = max(0, limit - self._outside()) if self.moving is door.member else limit
        if slots != gate.bulkhead.limit:
            gate.resize(now, slots)
            if gate.breaker.slots is not None:
                gate.breaker.slots = limit  # those it holds elsewhere may be overdue, too

    def _outside(self) -> int:
        """The slots of the guard that belong to no compartment's door."""
        inside = sum(part.bulkhead.taken for part in self.shares.parts)
        outside = self._door.gate.bulkhead.taken - inside
        if outside <= 0:
            self.moving = None
        return max(0, outside)


class PartDoor(Door):
    """The door of a compartment, whose neighbours are told before anybody passes it.

    Attributes:
        sharing: What it has in common with them; None where no compartments form by themselves.
        member: Its part in the shares.
    """

    __slots__ = ("member", "sharing")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sharing: Sharing | None = None
        self.member = Member(self.gate.bulkhead)

    def _ask(self, sharing: Sharing) -> None:
        part = self.member
        part.asked = self.clock()
        # No lock is taken and nothing is done as long as the shares stay as they are.
        if sharing.moving is part or not sharing.shares.nothing_changes(part):
            sharing.ask(self)

    def enter(self, *, checkout: bool = False, budget: float | None = None) -> int:
        """See Door."""
        if self.sharing is not None and not checkout:  # a checkout has asked in ``check_out``
            self._ask(self.sharing)
        return Door.enter(self, checkout=checkout, budget=budget)

    async def enter_async(self, *, budget: float | None = None) -> int:
        """See Door."""
        if self.sharing is not None:
            self._ask(self.sharing)
        return await Door.enter_async(self, budget=budget)

    def check_out(self, wait: Callable[[Any], Any] | None, *, budget: float | None = None) -> int:
        """See Door."""
        if self.sharing is not None:
            self._ask(self.sharing)
        return Door.check_out(self, wait, budget=budget)

    async def check_out_async(self, *, budget: float | None = None) -> int:
        """See Door."""
        if self.sharing is not None:
            self._ask(self.sharing)
        return await Door.check_out_async(self, budget=budget)

    def check_out_now(self) -> int:
        """See Door."""
        if self.sharing is not None:
            self._ask(self.sharing)
        return Door.check_out_now(self)

    def preview(self) -> Refusal | None:
        """See Door. Who asks is about to make a call: the guard's own door must know of it first."""
        if self.sharing is not None and not self.sharing.divided:
            self.sharing.is_divided_for(self)
        return Door.preview(self)

    async def reserve(self, *, budget: float | None = None) -> int | Refusal:
        """See Door."""
        if self.sharing is not None:
            self._ask(self.sharing)
        return await Door.reserve(self, budget=budget)


def _oldest(now: float, gate: Gate) -> float | None:
    """Seconds for which the oldest call of a gate has been under way; None without one."""
    # Each of these is in the order of time.
    starts = [since for since, _ in islice(gate.checkouts.values(), 1)]
    starts += islice(gate.breaker.in_flight.values(), 1)
    starts += [since for since, _ in islice(gate.breaker.overdue.values(), 1)]
    return now - min(starts) if starts else None


def _turn_quietly(now: float, gate: Gate, transition: str) -> None:
    """Follows the guard. A circuit that was as the guard's had been is not told of once more."""
    gate.turn(now, transition)
    gate.outbox[:] = [
        item
        for item in gate.outbox
        if not isinstance(item, Change) or item.old in {"open", "half_open", "forced_open"}
    ]


def _take_over_the_past(now: float, gate: Gate, whole: Door) -> None:
    """Makes the past of the guard that of the one workload it has had: its results, and an open circuit."""
    with whole.lock:
        theirs, ours = whole.gate.breaker, gate.breaker
        theirs.evidence(whole.gate.last)  # writes down what is not
        ours.window = ours._basis = copy.deepcopy(theirs.window)  # noqa: SLF001
        for count in _COUNTS:
            setattr(ours, count, getattr(theirs, count))
        gate.admitted = whole.gate.admitted
    if theirs.state in {"open", "half_open"}:
        gate.turn(now, "open", "divided")
