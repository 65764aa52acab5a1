"""The mode of a gate, and the calls that run without a slot while the gate does not enforce.

Depends on the queue of the shadow and on outcomes; must not import clocks or locks.

In shadow the gate lets every call run, and makes the decisions of an enforcing gate on a model. A call that
enforcing would admit holds a slot of the model and is evidence. A call that it would refuse or keep waiting
is *outside*: it holds no slot and is no evidence. `guardrails._core.shadow_queue` models the wait. When the
gate is off, every call is outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from guardrails._core.criticality import CRITICAL
from guardrails._core.outcome import Outcome
from guardrails._core.shadow_queue import ShadowQueue, WouldWait

if TYPE_CHECKING:
    from guardrails._core.bulkhead import Waiter

__all__ = ["MODES", "UNCOUNTED", "Mode", "Outside"]

Mode = Literal["enforce", "shadow", "off"]

MODES: tuple[Mode, ...] = ("enforce", "shadow", "off")

UNCOUNTED = -(10**12)
"""The ticket of work that is no evidence, and the slot of a request that would have been refused before.

The numbers of outside calls are below it. A slot times -1 is above it."""


class Outside(ShadowQueue):
    """The calls of one gate that run without a slot of it. A base of `guardrails._core.gate.Gate`.

    Attributes:
        mode: ``"enforce"``, ``"shadow"`` or ``"off"``.
        enforces: True in ``"enforce"``.
        would_reject: Calls that would have been refused, by reason.
        would_stop: Calls that would have been stopped at their deadline.
        refused_elsewhere: Slots of the model that were given to calls which another gate refused later.
        highest: The largest number of calls under way when one was let in without a slot, since the mode was
            set.
        longest: Seconds of the longest call that ended under the lock, since the mode was set. Each slow call
            ends there.
    """

    __slots__ = (
        "_lowest",
        "enforces",
        "highest",
        "longest",
        "mode",
        "refused_elsewhere",
        "releasing",
        "would_reject",
        "would_stop",
    )

    mode: Mode
    enforces: bool
    would_reject: dict[str, int]
    would_stop: int
    refused_elsewhere: int
    highest: int
    longest: float
    _lowest: int

    def _start_outside(self) -> None:
        self.mode = "enforce"
        self.enforces = True
        self.outside = {}
        self.events = []
        self.would_reject = {}
        self.unslotted = self.slots_of_ended = self.would_stop = self.highest = self.refused_elsewhere = 0
        self.longest = 0.0
        self._lowest = UNCOUNTED

    @property
    def under_way(self) -> int:
        """The number of calls that run, with a slot or without."""
        return self.bulkhead.taken + (0 if self.enforces else self.unslotted - self.slots_of_ended)

    # --- the mode ------------------------------------------------------------------------------

    def set_mode(self, now: float, mode: Mode) -> None:
        """Changes the mode. A call under way ends as it began: with a slot, or outside."""
        self._begin_move(now)
        if mode != self.mode:
            if self.mode == "shadow":
                self._end_model()
            ranks, enforces = self.bulkhead.ranks, mode == "enforce"
            # A call that is outside holds a slot while the gate enforces. No function is called in between.
            adopted = self.unslotted if enforces else -self.unslotted if self.enforces else 0
            self.bulkhead.taken += adopted
            if ranks is not None:
                ranks.held[CRITICAL] += adopted
            self.mode, self.enforces = mode, enforces
            self.highest, self.longest = 0, 0.0
            self._fit_slots(self.bulkhead.limit)  # an adaptive limit is applied by an enforcing gate only
            if not enforces:
                self._wake_all()
        self._end_move(None)

    def _wake_all(self) -> None:
        """Lets in every caller that waits for a slot: the gate no longer enforces."""
        for waiter in list(self.bulkhead.queue):
            self.bulkhead.withdraw(waiter)
            waiter.verdict = "let_in"
            self.outbox.append(waiter)

    # --- a call that is let in -----------------------------------------------------------------

    def let_in(
        self,
        now: float,
        held: list[int],
        rank: int = CRITICAL,
        max_wait: float = 0.0,
        budget: float | None = None,
        origin: object = None,
        *,
        checkout: bool = False,
        judged: bool = True,
        waits_for_itself: bool = False,
    ) -> int:
        """Lets a call run in any case. In shadow it first decides whether enforcing would admit the call.

        Args:
            now: The moment.
            held: Its first item is set to the call's number; see ``Gate.enter``.
            rank: The call's criticality; see `guardrails._core.criticality`.
            max_wait: Maximum seconds for which it would wait for a slot.
            budget: Seconds that the caller has left, a limit of the wait; None without a deadline.
            origin: The request that it belongs to; handed on with a refusal after a wait.
            checkout: True for a pool's checkout.
            judged: False for a call inside another one that enforcing would not run: nothing is decided.
            waits_for_itself: True if the caller itself holds every slot, so that no slot can become free.

        Returns:
            The ticket or slot; for a call outside a number below `UNCOUNTED`; 0 if the gate enforces by now.
        """
        now = self._begin_move(now)
        if self.enforces:
            return int(self._end_move(0))
        if not judged or self.mode == "off":
            return int(self._end_move(self._go_outside(held)))
        call = WouldWait(now, origin, checkout=checkout) if max_wait > 0 else None
        try:
            verdict = self._find_slot(now, call, rank)
            if verdict is True:
                return int(self._end_move(self._take(now, rank, None, held, checkout=checkout)))
            number = self._go_outside(held)
            if verdict is None and call is not None:
                self._would_wait(call, number, 0.0 if waits_for_itself else max_wait, budget)
        except BaseException:
            if call is not None and not call.number:
                self.bulkhead.withdraw(call)
            raise
        return int(self._end_move(number))

    def _go_outside(self, held: list[int]) -> int:
        ranks = self.bulkhead.ranks
        number = held[0] = self._lowest = self._lowest - 1
        self.outside[number] = None
        self.unslotted += 1
        if self.enforces:  # a waiter was let in, and the gate enforces again before it runs
            self.bulkhead.taken += 1
            if ranks is not None:
                ranks.held[CRITICAL] += 1
        self.highest = max(self.highest, self.under_way)
        return number

    def would_run(self, number: int) -> bool:
        """True if a call has a slot in the model, or still waits for one there."""
        return number > 0 or self.outside.get(number) is not None

    def has_slot(self, slot: int) -> bool:
        """True if a checkout has a slot in the model, waits for one there, or is older than the guard."""
        return slot == 0 or (self.would_run(slot) and self.outside.get(-slot, slot) is not None)

    def lateness(self, number: int) -> float | None:
        """Seconds that an outside call has waited in the model so far; None if enforcing would not run it."""
        call = self.outside.get(number)
        if call is None:
            return None
        return call.waited if call.inner else self.last - call.since

    def _let_in_woken(self, waiter: Waiter, held: list[int] | None) -> Any:
        """Lets in a caller that waited for a slot when the mode was changed: True if it was granted one."""
        if waiter.verdict == "granted" and waiter.epoch == self.bulkhead.epoch:
            return True
        self.bulkhead.withdraw(waiter)
        return self._go_outside([0] if held is None else held)

    def _take_over_outside(self, slot: int, slots: dict[Any, Any], held: list[int] | None) -> int | None:
        """Does ``Gate.take_over`` for a reservation that is outside; None if there is none."""
        held = [0] if held is None else held
        if self.enforces or (slot != UNCOUNTED and slot not in self.outside):
            return None
        if self.outside.get(slot) is None:  # enforcing would have refused the request
            return self._go_outside(held)
        del slots[self]
        held[0] = slot
        return slot

    def _slot_in_model(self, slot: int) -> int:
        """The slot that a checkout has in the model; `UNCOUNTED` if it has none: its work is no evidence."""
        if self.mode == "off":
            return UNCOUNTED
        if slot > 0:
            return slot if self.outside.get(-slot, slot) is not None else UNCOUNTED
        if slot >= -1:  # 0 or `OPENING`
            return slot
        call = self.outside.get(slot)
        return call.inner if call is not None and call.inner else UNCOUNTED

    # --- the end of one ------------------------------------------------------------------------

    def leave_outside(self, now: float, number: int, outcome: Outcome) -> None:
        """Ends a call that is outside."""
        call = self.outside[number]
        if call is not None:
            if call.ended is None:
                # A checkout's end is not delayed: the pool itself has made it wait.
                later = self.mode == "shadow" and not call.checkout
                self._end_real(call, now, outcome, now + call.waited if later else now)
            return
        if self.enforces:  # it holds a slot
            self.releasing = number
        del self.outside[number]
        self.unslotted -= 1
        if self.releasing == number:
            self._release_slot()

    def count_would_stop(self, now: float) -> None:
        """Counts a call that enforcing would have stopped."""
        self._begin_move(now)
        self.would_stop += 1
        self._end_move(None)

    def end_in_model(
        self, now: float, number: int, outcome: Outcome, *, checkout: bool = False, refused: bool = False
    ) -> None:
        """Ends a call in the model while the real one continues: enforcing would have ended it by now.

        Args:
            now: The moment.
            number: Its ticket, slot or number outside.
            outcome: The outcome of the call in the model.
            checkout: True for a checkout.
            refused: True if another gate has refused it after a wait in the model.
        """
        now = self._begin_move(now)
        call = self.outside.get(number)
        self.refused_elsewhere += refused and (number > 0 or (call is not None and call.inner > 0))
        # Each leaves the model first: an interrupt in between costs the count `unslotted`, and no slot.
        if self.mode == "shadow" and call is not None and call.ended is None:
            if call.inner:
                self._release(call.inner, outcome, now, checkout=call.checkout)
                self.unslotted += 1
            else:
                self.bulkhead.withdraw(call)
            self.outside[number] = call.due = None
        elif self.mode == "shadow" and number > 0:
            breaker = self.breaker
            in_flight = number in breaker.in_flight or number in breaker.overdue
            if number in self.checkouts if checkout else in_flight:
                self._release(number, outcome, now, checkout=checkout)
                self.outside[-number if checkout else number] = None
                self.unslotted += 1
        self._end_move(None)
