"""A checkout in shadow that waits for a pool which is full of calls that enforcing would have stopped.

Depends on observations and the pool's figures; must not import a pool or a driver.

Enforcing, the calls that run on would have ended, and this checkout would have a connection. If most of the
last calls of its compartment and route were stopped and one of them still hangs, it would hang as well: so it
keeps its slot in the model, becomes slow there and is counted as stopped at its limit, as a statement is. Any
other checkout leaves the model after its usual time; see `PoolFigures.expect_wait`.
"""

from __future__ import annotations

from guardrails._core.outcome import Outcome
from guardrails._core.shadow import UNCOUNTED
from guardrails._dbapi.observing import Observation, has_slots, observe
from guardrails._dbapi.unenforced import end_observed
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.checkout import HeldCheckout
from guardrails._pool.figures import PoolFigures
from guardrails._pool.limits import time_allowed
from guardrails._runtime.waiters import on_event_loop

__all__ = ["NO_WAIT", "PoolWait", "begin_wait"]


class PoolWait:
    """A wait that counts in the model as a statement that hangs."""

    __slots__ = ("observation", "tickets")

    def __init__(self) -> None:
        self.tickets: list[tuple[LockedGate, int, int]] = []
        self.observation: Observation | None = None

    def end(self) -> None:
        """Ends the wait, without evidence: from now on the statements on the connection are the evidence."""
        end_observed(self.tickets, Outcome.ABANDONED, self.observation)


NO_WAIT = PoolWait()
"""One that counts as nothing."""


def begin_wait(figures: PoolFigures, checkout: HeldCheckout, *, on_loop: bool) -> PoolWait | None:
    """Tells the model of a checkout that now asks its pool for a connection.

    Args:
        figures: The pool's figures.
        checkout: The checkout; it has its slots.
        on_loop: True if it waits in an asyncio task.

    Returns:
        The wait if it counts as a statement that hangs; its `end` must be called.
    """
    if not figures.expect_wait(checkout) or not has_slots(checkout) or (on_loop and not on_event_loop()):
        return None
    seconds, own = time_allowed(checkout.guard)
    gates, wait = checkout.guard.call_settings.gates, PoolWait()
    try:
        for gate, slot in checkout.slots:
            wait.tickets.append((gate, gate.begin(slot), slot))
        if any(ticket == UNCOUNTED for _, ticket, _ in wait.tickets):
            wait.end()  # in the model it still waits for a slot
        wait.observation = observe(gates, checkout, wait.tickets, seconds, own=own, on_loop=on_loop)
    except BaseException:
        wait.end()
        raise
    return wait
