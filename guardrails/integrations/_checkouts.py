"""One connection in use, and the slots it takes. Knows no pool and no database."""

from __future__ import annotations

from guardrails._deadline import current, touch
from guardrails._door import Door
from guardrails._guard import Guard, workload
from guardrails._sharing import DEFAULT
from guardrails.integrations._budget import innermost

__all__ = ["Checkout", "check_out"]


class Checkout:
    """One connection out of its pool.

    Attributes:
        guard: The guard it was made through: the pool's own, or a compartment of it.
        slots: The doors it passed, the pool's own last, each with the number of its slot there.
        spoilt: Whether work on it was stopped: a late order to stop would hit whoever has it next.
    """

    __slots__ = ("guard", "slots", "spoilt")

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.slots: list[tuple[Door, int]] = []
        self.spoilt = False

    def give_back(self) -> None:
        """Gives the slots back, each once."""
        while self.slots:
            door, slot = self.slots.pop()
            door.check_in(slot)

    def __del__(self) -> None:
        self.give_back()  # of a thread that ended with its connection open


def check_out(guard: Guard, *, sorts: bool) -> Checkout:
    """Takes the slots of one connection, waiting for them in this thread.

    Args:
        guard: The pool's guard.
        sorts: Whether a checkout outside every compartment belongs to the one of its route.

    Raises:
        RejectedError: There is none for it.
    """
    scope = current()
    inner = innermost(guard)
    if sorts and inner is guard:
        request = None if scope is None else scope.request
        inner = workload(guard, (request.template() if request else None) or DEFAULT)
    touch(scope, inner.passage)
    budget = None if scope is None else scope.remaining()
    if budget is not None and budget <= 0:
        raise guard.passage.doors[-1].refuse("deadline_spent")
    checkout = Checkout(inner)
    try:
        for door in inner.passage.doors:
            checkout.slots.append((door, door.check_out(None, budget=budget)))
    except BaseException:
        checkout.give_back()
        raise
    return checkout
