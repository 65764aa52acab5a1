"""Runs the checkouts and commands of one cluster node. Depends on the command runner; must not import pools.

A cluster client sends commands on a node's connection without redis-py's retries around them, so a piece of
work is known by its first send and its last reply. Its time is measured from its first read on: a pipeline
writes to all of its nodes before it reads from one, and no node is slow because another one is.
"""

from __future__ import annotations

from time import monotonic

from guardrails._dbapi.observing import observe
from guardrails._guard.guard import Guard
from guardrails.errors import RejectedError
from guardrails.integrations.redis._checkout import RedisCheckout
from guardrails.integrations.redis._cluster_call import current_call
from guardrails.integrations.redis._commands import CommandRunner
from guardrails.integrations.redis._releases import GRACE, in_giving_back, is_release

__all__ = ["NodeRunner"]


class NodeRunner(CommandRunner):
    """Takes slots of a node, and bounds its work by the call of the cluster client that it is part of."""

    def enter_now(self) -> RedisCheckout:
        """Takes a slot without waiting: redis-py's asyncio nodes give out a connection at once or not at all.

        Raises:
            RejectedError: There is no slot.
        """
        checkout = self._new_checkout()
        checkout.take_slots_now(checkout.guard.call_settings.gates)
        return checkout

    def admit(self, checkout: RedisCheckout) -> None:
        """Admits a piece of work before anything of it is sent.

        Raises:
            RejectedError: The guard refuses it.
        """
        if checkout.used and not checkout.from_reserve:
            self._set_deadline(checkout)
            try:
                self._readmit(checkout)
            except RejectedError:
                if not is_release():
                    raise
        checkout.used = True

    def start(self, checkout: RedisCheckout) -> None:
        """Starts to measure a piece of work that was admitted."""
        if checkout.times is not None:
            checkout.started = checkout.times.clock()
        if checkout.tickets or checkout.blocking:
            return
        checkout.tickets = tickets = []
        for gate, slot in checkout.slots:
            tickets.append((gate, gate.begin(slot), slot))
        if tickets and not self._gate.core.enforces:
            gates = checkout.guard.call_settings.gates
            checkout.observation = observe(
                gates, checkout, tickets, checkout.seconds, own=checkout.own, on_loop=self._is_async
            )

    def _compartment(self) -> Guard:
        return self._guard

    def _new_checkout(self) -> RedisCheckout:
        checkout = super()._new_checkout()
        self._bound(checkout)
        return checkout

    def _set_deadline(self, checkout: RedisCheckout) -> None:
        super()._set_deadline(checkout)
        self._bound(checkout)

    def _bound(self, checkout: RedisCheckout) -> None:
        """Bounds the work of a checkout by the rest of its call."""
        call = current_call.get()
        if call is None:
            return
        left = call.left() if self._gate.core.enforces else None
        if left is not None and (checkout.seconds is None or left < checkout.seconds):
            if left < GRACE and (in_giving_back() or is_release()):
                left = GRACE
            if left <= 0:
                self._gate.refuse("deadline_spent")
            checkout.seconds, checkout.at = left, monotonic() + left
            checkout.own = checkout.own and call.is_fair(left)
        call.tries += 1
