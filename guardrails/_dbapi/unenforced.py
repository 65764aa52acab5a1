"""Runs work on connections while the guard enforces nothing: in shadow it is observed, off it is only run.

Depends on observations and checkouts; must not import SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from guardrails._core.outcome import Outcome
from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.judge import Judge
from guardrails._dbapi.observing import Observation, has_slots
from guardrails._dbapi.observing import observe as observe_work
from guardrails._dbapi.unhooked import OutsideWork
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.limits import innermost, time_allowed
from guardrails._runtime.waiters import on_event_loop

__all__ = ["UnenforcedWork"]


class UnenforcedWork(OutsideWork):
    """The part of `StatementRunner` for the modes shadow and off."""

    judge: Judge
    _driver: Driver | None
    _no_checkout: list[tuple[LockedGate, int]]

    def run_unenforced(
        self,
        call: Callable[..., Any],
        args: Sequence[Any],
        connection: Any,
        checkout: DBAPICheckout | None,
        timeout: float | None,
        *,
        ending: bool,
        proves: bool,
    ) -> Any:
        """Runs one piece of work where nothing is enforced; see `run`.

        A connection that was taken back before stays so, and is not idle meanwhile: the mode may change.
        """
        hold = None if checkout is None else checkout.hold
        if hold is None:
            return self._run_observed(call, args, connection, checkout, timeout, ending=ending, proves=proves)
        token = hold.begin()
        try:
            return self._run_observed(call, args, connection, checkout, timeout, ending=ending, proves=proves)
        finally:
            token.append(self._gate.clock())

    def _run_observed(
        self,
        call: Callable[..., Any],
        args: Sequence[Any],
        connection: Any,
        checkout: DBAPICheckout | None,
        timeout: float | None,
        *,
        ending: bool,
        proves: bool,
    ) -> Any:
        gate = self._gate
        if gate.core.mode == "off":
            return call(*args)
        guard = self._guard if checkout is None else checkout.guard
        seconds, own = time_allowed(guard, timeout)
        if seconds is not None and seconds <= 0 and not ending and has_slots(checkout):
            gate.reject("deadline_spent")
            for each, slot in [] if checkout is None else checkout.slots:
                each.step(each.core.expel, slot, Outcome.ABANDONED, checkout=True)
        tickets: list[tuple[LockedGate, int]] = []
        slots = self._no_checkout
        if checkout is not None:
            slots, checkout.under_way = checkout.slots, tickets
        outcome, observation = Outcome.ABANDONED, None
        times = checkout.times if proves and checkout is not None else None
        started = None if times is None else times.clock()
        try:
            for gate, slot in slots:
                tickets.append((gate, gate.begin(slot)))
            observation = self.observe(checkout, tickets, seconds, own=own)
            result = call(*args)
            outcome = Outcome.SUCCESS if proves else Outcome.NEUTRAL
        except BaseException as error:
            outcome = self.judge.outcome(error, connection, checkout, ending=ending, proves=proves)
            raise
        finally:
            if observation is not None:
                observation.finish()
            while tickets:
                gate, ticket = tickets.pop()
                gate.end(ticket, outcome)
            if times is not None and started is not None:
                times.used(started)
        return result

    def observe(
        self,
        checkout: DBAPICheckout | None,
        tickets: list[tuple[LockedGate, int]],
        seconds: float | None,
        *,
        own: bool,
    ) -> Observation | None:
        """Observes work that enforcing would stop after ``seconds``; None where it could not stop it."""
        if self._driver is None:
            return None
        guard = innermost(self._guard) if checkout is None else checkout.guard
        gates = guard.call_settings.gates
        return observe_work(
            gates, checkout, tickets, seconds, own=own, on_loop=self._is_async and on_event_loop()
        )
