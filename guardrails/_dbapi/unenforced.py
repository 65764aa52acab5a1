"""Runs work on connections while the guard does not enforce. In shadow it observes the work.

Depends on observations and checkouts; must not import SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from guardrails._core.outcome import Outcome
from guardrails._dbapi.checkout import DBAPICheckout
from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.error_classifier import ErrorClassifier
from guardrails._dbapi.observing import Observation, has_slots
from guardrails._dbapi.observing import observe as observe_work
from guardrails._dbapi.unhooked import OutsideWork
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.limits import innermost, time_allowed
from guardrails._runtime.scope import ambient
from guardrails._runtime.waiters import on_event_loop

__all__ = ["UnenforcedWork", "end_observed"]


class UnenforcedWork(OutsideWork):
    """The part of `StatementRunner` for the modes shadow and off."""

    classifier: ErrorClassifier
    _driver: Driver | None
    _timeout: float | None
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
        """Runs one piece of work while the guard does not enforce; see `StatementRunner.run`."""
        with self.unenforced(connection, checkout, timeout, ending=ending, proves=proves):
            return call(*args)

    @contextmanager
    def unenforced(
        self,
        connection: Any,
        checkout: DBAPICheckout | None,
        timeout: float | None,
        *,
        ending: bool,
        proves: bool,
    ) -> Iterator[None]:
        """A block around one piece of work while the guard does not enforce; see `StatementRunner.run`.

        The mode may change meanwhile. So a connection that was taken back stays taken back, and one on which
        this work runs does not count as idle.
        """
        hold = None if checkout is None else checkout.hold
        token = None if hold is None else hold.begin()
        tickets: list[tuple[LockedGate, int, int]] = []
        outcome, observation, times, started = Outcome.ABANDONED, None, None, 0.0
        observed = self._gate.core.mode != "off"
        try:
            if not observed:
                yield
                return
            seconds, own = self._limit_in_model(checkout, timeout, ending=ending)
            slots = self._no_checkout
            if checkout is not None:
                slots, checkout.under_way = checkout.slots, tickets
                if proves and checkout.times is not None:
                    times, started = checkout.times, checkout.times.clock()
            for gate, slot in slots:
                tickets.append((gate, gate.begin(slot), slot))
            observation = self.observe(checkout, tickets, seconds, own=own)
            yield
            outcome = Outcome.SUCCESS if proves else Outcome.NEUTRAL
        except BaseException as error:
            if observed:
                outcome = self.classifier.outcome(error, connection, checkout, ending=ending, proves=proves)
            raise
        finally:
            end_observed(tickets, outcome, observation)
            if times is not None:
                times.used(started)
            if token is not None:
                token.append(self._gate.clock())

    def _limit_in_model(
        self, checkout: DBAPICheckout | None, timeout: float | None, *, ending: bool
    ) -> tuple[float | None, bool]:
        """The seconds for a piece of work, and whether they are the guard's own; see `time_allowed`.

        Without time left, enforcing would refuse the work. Then its checkout leaves the model.
        """
        guard = self._guard if checkout is None else checkout.guard
        if ambient.get() is None and guard is self._guard:
            seconds, own = self._timeout if timeout is None else timeout, True
        else:
            seconds, own = time_allowed(guard, timeout)
        if seconds is not None and seconds <= 0 and not ending and has_slots(checkout):
            self._gate.refuse("deadline_spent")
            for gate, slot in [] if checkout is None else checkout.slots:
                gate.step(gate.core.end_in_model, slot, Outcome.ABANDONED, checkout=True)
        return seconds, own

    def observe(
        self,
        checkout: DBAPICheckout | None,
        tickets: Sequence[tuple[LockedGate, int, int]],
        seconds: float | None,
        *,
        own: bool,
    ) -> Observation | None:
        """Observes work that enforcing would stop after ``seconds``; None if it could not stop this work."""
        if self._driver is None or (self._is_async and not on_event_loop()):
            return None
        guard = innermost(self._guard) if checkout is None else checkout.guard
        gates = guard.call_settings.gates
        return observe_work(gates, checkout, tickets, seconds, own=own, on_loop=self._is_async)


def end_observed(
    tickets: list[tuple[LockedGate, int, int]], outcome: Outcome, observation: Observation | None
) -> None:
    """Ends a piece of work: its observation, and then each of its tickets, which it removes from the list."""
    try:
        if observation is not None:
            observation.end()
    finally:
        while tickets:
            gate, ticket, slot = tickets.pop()
            gate.end(ticket, outcome, 0, slot)
