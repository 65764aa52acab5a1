"""One connection in use, and the slots it takes. Knows no pool and no database."""

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
    """What holds slots, and gives them back.

    Attributes:
        slots: The gates that were passed, the pool's own last, each with the number of its slot there.
    """

    __slots__ = ()

    slots: list[tuple[LockedGate, int]]

    def give_back(self) -> None:
        """Gives the slots back, each once."""
        while self.slots:
            gate, slot = self.slots[-1]
            try:
                gate.check_in(slot)
                self.slots.pop()
            except BaseException:  # Ctrl-C: once more, as a number is given back once; then the others
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
        guard: The guard it is made through: the pool's own, or a compartment of it.
        under_way: The evidence under way, by gate; empty while nothing runs on the connection.
        request: The request it is for, or None.
        must_discard: Whether work on it was stopped: a late order to stop would hit whoever has it next.
        caller_cancelled: Whether its caller was cancelled in the middle of some work. The clean-up after that
            may find the connection in any state, and is no evidence about the database.
    """

    __slots__ = ("caller_cancelled", "guard", "must_discard", "request", "slots", "under_way")

    def __init__(self, guard: Guard) -> None:
        self.guard = innermost(guard)
        self.slots: list[tuple[LockedGate, int]] = []
        self.under_way: Sequence[tuple[LockedGate, int]] = ()
        self.request: RequestScope | None = None
        self.must_discard = self.caller_cancelled = False

    def take_slots(self, wait: Callable[[Any], Any] | None = None) -> None:
        """Takes the slots, waiting for them.

        Args:
            wait: Runs a coroutine to its end, for asyncio behind a greenlet; None waits in the thread.

        Raises:
            RejectedError: There is none for it.
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
