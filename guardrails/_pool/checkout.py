"""One connection in use and the slots it takes. Depends on the guard; must not import a pool or a driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from guardrails._guard.guard import Guard
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.limits import innermost
from guardrails._runtime.fork import check_process
from guardrails._runtime.scope import RequestScope, ambient, current, touch

__all__ = ["Checkout", "Slots"]


class Slots:
    """A holder of slots, which releases each once.

    Attributes:
        slots: The gates that admitted it, the pool's own last, each with the slot's number.
    """

    __slots__ = ()

    slots: list[tuple[LockedGate, int]]

    def give_back(self) -> None:
        """Releases the slots, each once."""
        while self.slots:
            gate, slot = self.slots[-1]
            try:
                gate.check_in(slot)
                self.slots.pop()
            except BaseException:  # Ctrl-C: repeat, because a number is released once only; then the others
                if self.slots and self.slots[-1] == (gate, slot):
                    self.slots.pop()
                    if slot:
                        gate.check_in(slot)
                self.give_back()
                raise


class Checkout(Slots):
    """One connection out of its pool.

    Args:
        guard: The pool's guard.

    Attributes:
        guard: The guard that admitted it: the pool's own, or a compartment of it.
        under_way: Gates and tickets of the call that runs on the connection; empty while none does.
        request: The request it is for, or None.
        must_discard: True if work on it was stopped: a late cancel request would hit its next user.
        caller_cancelled: True if its caller was cancelled during work. The clean-up may then find the
            connection in any state, and is no evidence about the database.
    """

    __slots__ = ("caller_cancelled", "guard", "must_discard", "request", "slots", "under_way")

    def __init__(self, guard: Guard) -> None:
        self.guard = innermost(guard)
        self.slots: list[tuple[LockedGate, int]] = []
        self.under_way: Sequence[tuple[LockedGate, int]] = ()
        self.request: RequestScope | None = None
        self.must_discard = self.caller_cancelled = False

    def take_slots(self, wait: Callable[[Any], Any] | None = None) -> None:
        """Takes the slots and waits for them if necessary.

        Args:
            wait: Runs a coroutine to its end, for asyncio behind a greenlet; None waits in the thread.

        Raises:
            RejectedError: A gate refused it.
        """
        check_process()
        gates, budget = self.guard.call_settings.gates, None
        if ambient.get() is not None:
            scope = current()
            touch(scope, self.guard.call_settings)
            if scope is not None:
                self.request, budget = scope.request, scope.remaining()
            if budget is not None and budget <= 0:
                raise gates[-1].refuse("deadline_spent")
        try:
            for gate in gates:
                self.slots.append((gate, gate.check_out(wait, budget=budget)))
        except BaseException:
            self.give_back()
            raise
