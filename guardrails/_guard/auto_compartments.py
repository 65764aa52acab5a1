"""Compartments that form by themselves, and the gates that keep each to its share.

Depends on keys and gates; what a key stands for (a function, a route) is for others to say.

As long as there is one workload, it is the guard: its calls pass the guard's gate and no other, so it has
every slot, one circuit and one line on every page. With the second workload the guard is *divided*. From then
on each workload has a gate of its own in front of the guard's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from typing import Any

from guardrails._core.breaker import Transition
from guardrails._core.gate import Gate, Refusal
from guardrails._core.shares import Member, Shares
from guardrails._guard.locked_gate import LockedGate
from guardrails._runtime.fork import ForkedLock

__all__ = ["DEFAULT", "MOST", "OTHER", "AutoCompartments", "CompartmentGate"]

DEFAULT, OTHER = "default", "other"
"""The compartment of calls that nothing is known about, and the one of all beyond the first `MOST`."""

MOST = 64
"""Compartments that form by themselves. Each is a window of results and a row on every page."""

_INHERITED_STATES = ("disabled", "metrics_only")
"""States set by hand that only make sense for all of a guard's circuits at once."""

_COUNTS = ("succeeded", "failed", "slow", "abandoned", "late")


class AutoCompartments:
    """The compartments of one guard, as a whole.

    Args:
        gate: The guard's gate.

    Attributes:
        formed: The compartments that have formed by themselves, by key.
        sole: The gate of the only one used so far, as long as the guard is not divided.
        divided: Whether calls pass the gates of their compartments.
        moving: The one that still holds slots from before it had a gate; None if none does.
    """

    def __init__(self, gate: LockedGate) -> None:
        self._gate = gate
        self._lock = ForkedLock()
        self.shares = Shares(gate.core.bulkhead.limit)
        self._elastic: dict[Member, CompartmentGate] = {}
        self._own: list[CompartmentGate] = []
        self.moving: Member | None = None
        self.formed: dict[str, Any] = {}
        self.sole: LockedGate | None = None
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

    def is_divided_for(self, gate: LockedGate) -> bool:
        """True if a call of a compartment passes the compartment's own gate; if not, only the guard's.

        The second compartment that is used divides the guard. What nothing is known about makes room for the
        first that has a name: the queries of a start-up are no workload of their own.
        """
        if self.divided or gate is self.sole:
            return self.divided
        with self._lock:
            if not self.divided:
                sole, slots = self.sole, self._gate.core.bulkhead
                if sole is None or (sole.name == DEFAULT and not slots.taken and not slots.queue):
                    self.sole = gate
                else:
                    self.divide()
        return self.divided

    def divide(self) -> None:
        """Gives each compartment its gate; the one there was so far takes its past along."""
        with self._lock:
            if not self.divided and isinstance(self.sole, CompartmentGate):
                gate = self.sole
                gate.step(_copy_history, gate.core, self._gate)
                if gate.core.breaker.state == "open":  # what opened the guard's says nothing about the others
                    self._gate.step(self._gate.core.set_state, "reset", "divided")
                gate.member.last_request = self._gate.clock()
                if gate.member in self._elastic:
                    self.moving = gate.member  # what it holds now, it holds of the guard alone
                    self._fit_all((gate.member,))
            self.divided = True

    # --- their gates ---------------------------------------------------------------------------

    def add(self, gate: CompartmentGate, *, elastic: bool) -> None:
        """Makes a gate one of these.

        Args:
            gate: A compartment's.
            elastic: Whether the compartment has formed by itself, so that its number of slots follows from
                who is active; else it is its own.
        """
        gate.member = self.shares.join(gate.core.bulkhead)
        gate.auto_compartments = self
        if elastic:
            self._elastic[gate.member] = gate
            self._own.append(gate)
            gate.reports_calls = False  # each call's end is told once, by the guard
            state = self._gate.core.breaker.state
            if state in _INHERITED_STATES:
                gate.step(_set_state_quietly, gate.core, state)

    def redistribute(self, gate: CompartmentGate) -> None:
        """Gives every compartment the slots it may have, now that one asks for a slot."""
        with self._lock:
            changed = self.shares.note_request(gate.clock(), gate.member)
            if self.moving is gate.member and gate.member not in changed:
                changed = (*changed, gate.member)
        self._fit_all(changed)

    def keep_size(self, gate: LockedGate) -> None:
        """Leaves a compartment the number of slots it was given by hand."""
        if isinstance(gate, CompartmentGate):
            self._elastic.pop(gate.member, None)
            self.divide()

    def resize(self, total: int) -> None:
        """Follows the guard's number of slots."""
        self.shares.total = total
        self._fit_all(tuple(self._elastic))

    def set_state(self, transition: str) -> None:
        """Follows the guard, whose state was changed by hand; except where that refuses everybody anyway."""
        if transition in {"reset", *_INHERITED_STATES}:
            for gate in list(self._own):
                gate.step(_set_state_quietly, gate.core, transition)

    def _fit_all(self, parts: tuple[Member, ...]) -> None:
        for part in parts:
            gate = self._elastic.get(part)
            if gate is not None:
                gate.step(self._fit, gate)

    def _fit(self, now: float, gate: CompartmentGate) -> None:
        # Read under the compartment's own lock: of two threads that come here, the last sets what holds now.
        core = gate.core
        limit = self.shares.limit(gate.member, _oldest(now, core))
        slots = max(0, limit - self._slots_outside()) if self.moving is gate.member else limit
        if slots != core.bulkhead.limit:
            core.resize(now, slots)
            if core.breaker.stall_slots is not None:
                core.breaker.stall_slots = limit  # those it holds elsewhere may be overdue, too

    def _slots_outside(self) -> int:
        """The slots of the guard that belong to no compartment's gate."""
        inside = sum(part.bulkhead.taken for part in self.shares.parts)
        outside = self._gate.core.bulkhead.taken - inside
        if outside <= 0:
            self.moving = None
        return max(0, outside)


class CompartmentGate(LockedGate):
    """The gate of a compartment, whose neighbours are told before anybody passes it.

    Attributes:
        auto_compartments: What it has in common with them; None where no compartments form by themselves.
        member: Its part in the shares.
    """

    __slots__ = ("auto_compartments", "member")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.auto_compartments: AutoCompartments | None = None
        self.member = Member(self.core.bulkhead)

    def _note_request(self, auto_compartments: AutoCompartments) -> None:
        part = self.member
        part.last_request = self.clock()
        # No lock is taken and nothing is done as long as the shares stay as they are.
        if auto_compartments.moving is part or not auto_compartments.shares.keeps_limits(part):
            auto_compartments.redistribute(self)

    def enter(
        self,
        *,
        checkout: bool = False,
        budget: float | None = None,
        wait: Callable[[Any], Any] | None = None,
        may_wait: bool = True,
    ) -> int:
        """See Gate."""
        if self.auto_compartments is not None and not checkout:  # a checkout has asked in ``check_out``
            self._note_request(self.auto_compartments)
        return LockedGate.enter(self, checkout=checkout, budget=budget, wait=wait, may_wait=may_wait)

    async def enter_async(self, *, checkout: bool = False, budget: float | None = None) -> int:
        """See Gate."""
        if self.auto_compartments is not None and not checkout:  # likewise
            self._note_request(self.auto_compartments)
        return await LockedGate.enter_async(self, checkout=checkout, budget=budget)

    def check_out(self, wait: Callable[[Any], Any] | None, *, budget: float | None = None) -> int:
        """See Gate."""
        if self.auto_compartments is not None:
            self._note_request(self.auto_compartments)
        return LockedGate.check_out(self, wait, budget=budget)

    async def check_out_async(self, *, budget: float | None = None) -> int:
        """See Gate."""
        if self.auto_compartments is not None:
            self._note_request(self.auto_compartments)
        return await LockedGate.check_out_async(self, budget=budget)

    def check_out_now(self) -> int:
        """See Gate."""
        if self.auto_compartments is not None:
            self._note_request(self.auto_compartments)
        return LockedGate.check_out_now(self)

    def preview(self) -> Refusal | None:
        """See Gate. Who asks is about to make a call: the guard's own gate must know of it first."""
        if self.auto_compartments is not None and not self.auto_compartments.divided:
            self.auto_compartments.is_divided_for(self)
        return LockedGate.preview(self)

    async def reserve(self, *, budget: float | None = None) -> int | Refusal:
        """See Gate."""
        if self.auto_compartments is not None:
            self._note_request(self.auto_compartments)
        return await LockedGate.reserve(self, budget=budget)


def _oldest(now: float, core: Gate) -> float | None:
    """Seconds for which the oldest call of a gate has been under way; None without one."""
    # Each of these is in the order of time.
    starts = [since for since, _ in islice(core.checkouts.values(), 1)]
    starts += islice(core.breaker.in_flight.values(), 1)
    starts += [since for since, _ in islice(core.breaker.overdue.values(), 1)]
    return now - min(starts) if starts else None


def _set_state_quietly(now: float, core: Gate, transition: str) -> None:
    """Follows the guard. A circuit that was as the guard's had been is not told of once more."""
    core.set_state(now, transition)
    core.outbox[:] = [
        item
        for item in core.outbox
        if not isinstance(item, Transition) or item.old in {"open", "half_open", "forced_open"}
    ]


def _copy_history(now: float, core: Gate, whole: LockedGate) -> None:
    """Makes the past of the guard that of the one workload it has had: its results, and an open circuit."""
    with whole.lock:
        theirs, ours = whole.core.breaker, core.breaker
        theirs.evidence(whole.core.last)  # writes down what is not
        ours.window = ours._basis = copy.deepcopy(theirs.window)  # noqa: SLF001
        for count in _COUNTS:
            setattr(ours, count, getattr(theirs, count))
        core.admitted = whole.core.admitted
    if theirs.state in {"open", "half_open"}:
        core.set_state(now, "open", "divided")
