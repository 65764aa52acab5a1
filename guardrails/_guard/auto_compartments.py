"""Automatic compartments and their gates, which limit each to its share.

Depends on gates; must not import guards. A key stands for a workload, such as a function or a route.

With one workload, calls pass the guard's gate alone: the workload has every slot, one circuit and one line on
every page. The second workload *divides* the guard. From then on each workload has a gate of its own in front
of the guard's gate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from guardrails._core.breaker import Transition
from guardrails._core.bulkhead import Waiter
from guardrails._core.gate import Gate, Refusal
from guardrails._core.shares import Member, Shares, share
from guardrails._guard.locked_gate import LockedGate
from guardrails._runtime.fork import ForkedLock

__all__ = ["DEFAULT", "LOOK_AGAIN", "MOST", "OTHER", "AutoCompartments", "CompartmentGate"]

DEFAULT, OTHER = "default", "other"
"""The compartment of calls without a known workload, and that of all workloads beyond the first `MOST`."""

MOST = 64
"""Maximum number of automatic compartments. Each has a window of results and a row on every page."""

LOOK_AGAIN = 0.01
"""Seconds after which a caller that waits looks again whether slots are still kept for other compartments."""

_INHERITED_STATES = ("disabled", "metrics_only")
"""Manual states that a guard's compartments take over."""

_COUNTS = ("succeeded", "failed", "slow", "abandoned", "late")


class AutoCompartments:
    """The automatic compartments of one guard.

    Args:
        gate: The guard's gate.

    Attributes:
        formed: The automatic compartments, by key.
        shares: The limits of all compartments.
        sole: The gate of the only compartment that has been used so far; None before.
        divided: True once calls pass the gates of their compartments.
    """

    def __init__(self, gate: LockedGate) -> None:
        self._gate = gate
        self._lock = ForkedLock()
        self.shares = Shares(gate.core.bulkhead)
        self._elastic: dict[Member, CompartmentGate] = {}
        self._own: list[CompartmentGate] = []
        self.formed: dict[str, Any] = {}
        self.sole: LockedGate | None = None
        self.divided = False

    # --- forming and division ------------------------------------------------------------------

    def find(self, key: str, form: Callable[[str], Any]) -> Any:
        """The compartment of a key; ``form`` makes a new one. Keys beyond `MOST` share one compartment."""
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
        """True if a call of a compartment passes the compartment's own gate; False if only the guard's.

        The second compartment that is used divides the guard. If the first one is `DEFAULT` and idle, another
        one replaces it without a division: the queries of a start-up are not a workload of their own.
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
        """Makes calls pass the gates of their compartments; the only one so far gets the guard's results."""
        with self._lock:
            if not self.divided and isinstance(self.sole, CompartmentGate):
                gate = self.sole
                gate.step(_copy_history, gate.core, self._gate)
                if gate.core.breaker.state == "open":  # no evidence against the others
                    self._gate.step(self._gate.core.set_state, "reset", "divided")
                gate.member.last_request = self._gate.clock()
                if gate.member in self._elastic:
                    self.shares.moving = gate.member  # it holds slots of the guard's gate only
                    self._fit_all((gate.member,))
            self.divided = True

    # --- gates and limits ----------------------------------------------------------------------

    def add(self, gate: CompartmentGate, *, automatic: bool) -> None:
        """Adds the gate of a compartment.

        Args:
            gate: The gate.
            automatic: True for an automatic compartment, whose number of slots depends on the active ones. A
                declared compartment keeps its number.
        """
        gate.member = self.shares.join(gate.core.bulkhead, gate.parent.workload if gate.parent else None)
        gate.auto_compartments = self
        if automatic:
            self._elastic[gate.member] = gate
            self._own.append(gate)
            gate.reports_calls = False  # the guard reports the end of each call
            state = self._gate.core.breaker.state
            if state in _INHERITED_STATES:
                gate.step(_set_state_quietly, gate.core, state)

    def redistribute(self, gate: CompartmentGate) -> None:
        """Updates the limits of all compartments, because one requests a slot."""
        if self._fits(gate):
            return
        with self._lock:
            changed = self.shares.note_request(gate.clock(), gate.member)
        self._fit_all(changed)

    def keep_size(self, gate: CompartmentGate) -> None:
        """Keeps the number of slots that a compartment was given by hand."""
        self._elastic.pop(gate.member, None)
        self.divide()

    def resize(self, total: int) -> None:
        """Updates the limits for a new number of slots of the guard."""
        self.shares.total = total
        self._fit_all(tuple(self._elastic))

    def set_state(self, transition: str) -> None:
        """Takes over a manual transition of the guard, unless the guard then refuses all calls anyway."""
        if transition in {"reset", *_INHERITED_STATES}:
            for gate in list(self._own):
                gate.step(_set_state_quietly, gate.core, transition)

    def _fit_all(self, parts: tuple[Member, ...]) -> None:
        for part in parts:
            gate = self._elastic.get(part)
            if gate is not None:
                gate.step(self._fit, gate)

    def _fit(self, now: float, gate: CompartmentGate) -> None:
        # Computed under the compartment's lock: the last of two threads sets the present limit.
        core = gate.core
        outside = self._slots_outside() if self.shares.moving is gate.member else 0
        limit = self.shares.limit(gate.member, now, core.age_of_oldest(now))
        slots = max(0, limit - outside)
        if slots != core.bulkhead.limit:
            core.resize(now, slots)
            if core.breaker.stall_slots is not None:
                # Slots that others have are no evidence; calls in the guard's own slots may be overdue, too.
                core.breaker.stall_slots = max(limit, share(self.shares.total))

    def _fits(self, gate: CompartmentGate) -> bool:
        """True if a compartment, one of several, has the limit that it should have. Needs no lock."""
        part, shares = gate.member, self.shares
        if part not in self._elastic:
            return shares.alone is None
        slots = part.bulkhead
        if shares.alone is not None or shares.moving is part or slots.taken >= slots.limit:
            return False
        try:
            limit = shares.limit(part, part.last_request, gate.core.age_of_oldest(part.last_request))
        except RuntimeError:  # another thread began or ended a call meanwhile
            return False
        return limit == slots.limit

    def _slots_outside(self) -> int:
        """Slots of the guard that are in use by calls outside the gates of its compartments."""
        outside = self.shares.outside()
        if not outside:
            self.shares.moving = None
        return outside


class CompartmentGate(LockedGate):
    """The gate of a compartment. Each request for a slot first updates the shares of the other compartments.

    Attributes:
        auto_compartments: The compartments of its guard; None if the guard forms none automatically.
        member: Its part in the shares.
    """

    __slots__ = ("auto_compartments", "member")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.auto_compartments: AutoCompartments | None = None
        self.member = Member(self.core.bulkhead)

    def note_request(self, auto_compartments: AutoCompartments) -> None:
        """Notes that a call requests a slot here, and updates the shares if that changes them."""
        part = self.member
        part.last_request = self.clock()
        keeps_limits = auto_compartments.shares.keeps_limits(part, part.last_request)
        if auto_compartments.shares.moving is part or not keeps_limits:
            auto_compartments.redistribute(self)

    def _parts_of_wait(self, waiter: Waiter, seconds: float) -> Iterator[float]:
        """See LockedGate. Another compartment that returns a slot wakes no caller here: they look."""
        for whole in super()._parts_of_wait(waiter, seconds):
            part = whole
            while self.auto_compartments is not None and self._looks_again(waiter, part):
                yield LOOK_AGAIN
                part -= LOOK_AGAIN
                if waiter.verdict is None:
                    self.auto_compartments.redistribute(self)
            yield part

    def _looks_again(self, waiter: Waiter, seconds: float) -> bool:
        return self.member.is_cut and waiter.verdict is None and seconds > LOOK_AGAIN

    def enter(
        self,
        *,
        checkout: bool = False,
        budget: float | None = None,
        wait: Callable[[Any], Any] | None = None,
        may_wait: bool = True,
    ) -> int:
        """See LockedGate."""
        if self.auto_compartments is not None and not checkout:  # a checkout was noted in ``check_out``
            self.note_request(self.auto_compartments)
        return LockedGate.enter(self, checkout=checkout, budget=budget, wait=wait, may_wait=may_wait)

    async def enter_async(self, *, checkout: bool = False, budget: float | None = None) -> int:
        """See LockedGate."""
        if self.auto_compartments is not None and not checkout:  # likewise
            self.note_request(self.auto_compartments)
        return await LockedGate.enter_async(self, checkout=checkout, budget=budget)

    def check_out(self, wait: Callable[[Any], Any] | None, *, budget: float | None = None) -> int:
        """See LockedGate."""
        if self.auto_compartments is not None:
            self.note_request(self.auto_compartments)
        return LockedGate.check_out(self, wait, budget=budget)

    async def check_out_async(self, *, budget: float | None = None) -> int:
        """See LockedGate."""
        if self.auto_compartments is not None:
            self.note_request(self.auto_compartments)
        return await LockedGate.check_out_async(self, budget=budget)

    def check_out_now(self) -> int:
        """See LockedGate."""
        if self.auto_compartments is not None:
            self.note_request(self.auto_compartments)
        return LockedGate.check_out_now(self)

    def preview(self) -> Refusal | None:
        """See LockedGate. A call follows, so the compartment is noted as used first."""
        if self.auto_compartments is not None and not self.auto_compartments.divided:
            self.auto_compartments.is_divided_for(self)
        return LockedGate.preview(self)

    async def reserve(self, *, budget: float | None = None) -> int | Refusal:
        """See LockedGate."""
        if self.auto_compartments is not None:
            self.note_request(self.auto_compartments)
        return await LockedGate.reserve(self, budget=budget)


def _set_state_quietly(now: float, core: Gate, transition: str) -> None:
    """Takes over a transition of the guard; reports it only if this compartment's circuit was open."""
    core.set_state(now, transition)
    core.outbox[:] = [
        item
        for item in core.outbox
        if not isinstance(item, Transition) or item.old in {"open", "half_open", "forced_open"}
    ]


def _copy_history(now: float, core: Gate, whole: LockedGate) -> None:
    """Copies the guard's results, and its open circuit, to the gate of its only workload so far."""
    with whole.lock:
        theirs, ours = whole.core.breaker, core.breaker
        theirs.evidence(whole.core.last)  # adds the pending results to the window
        ours.window = ours._basis = copy.deepcopy(theirs.window)  # noqa: SLF001
        for count in _COUNTS:
            setattr(ours, count, getattr(theirs, count))
        core.admitted = whole.core.admitted
    if theirs.state in {"open", "half_open"}:
        core.set_state(now, "open", "divided")
