"""Runs driver work that is a coroutine as evidence for the guard, bounded by a deadline.

The twins of the methods of `StatementRunner`, which differ in an ``await``. Depends on the runner; must not
import a driver.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from guardrails._core.gate import OPENING
from guardrails._core.outcome import Outcome
from guardrails._dbapi.runner import StatementRunner
from guardrails._dbapi.stopping import StoppedError
from guardrails._dbapi.unenforced import end_observed
from guardrails._dbapi.unhooked import too_late
from guardrails._guard.locked_gate import LockedGate
from guardrails._pool.checkout import Checkout
from guardrails._pool.idle_hold import PutBack
from guardrails._pool.limits import innermost, time_allowed
from guardrails._runtime.scope import Client, ambient, waiting_client

__all__ = ["LoopRunner"]


class LoopRunner(StatementRunner):
    """Runs pieces of driver work in asyncio tasks; see `StatementRunner`."""

    async def run_async(  # noqa: C901, PLR0912 - the twin of `StatementRunner.run`
        self,
        call: Callable[..., Awaitable[Any]],
        args: Sequence[Any],
        connection: Any,
        checkout: Checkout | None,
        *,
        ending: bool = False,
        commit: bool = False,
        proves: bool = True,
    ) -> Any:
        """Runs one piece of work on a connection; see `StatementRunner.run`."""
        out: Any = checkout
        proves = proves and not (ending or commit)
        if not self._gate.core.enforces:
            with self.unenforced(connection, out, None, ending=ending, proves=proves):
                return await call(*args)
        guard = self._guard if checkout is None else checkout.guard
        client: Client | None = None
        if ambient.get() is None and guard is self._guard:
            seconds, own = self._timeout, True
        else:
            seconds, own = time_allowed(guard)
            if not (ending or commit):  # the end of a transaction continues without the client
                client = waiting_client(ambient.get(), guard.name)
        if seconds is not None and seconds <= 0:
            seconds = self._spent(ending=ending)
        times = checkout.times if proves and checkout is not None else None
        tickets: list[tuple[LockedGate, int, int]] = []
        slots = self._no_checkout
        token: PutBack | None = None
        if checkout is not None:
            if checkout.hold is not None:
                token = checkout.hold.begin()
            slots, checkout.under_way = checkout.slots, tickets
        outcome = Outcome.ABANDONED
        started: float | None = None
        try:
            for gate, slot in slots:
                tickets.append((gate, gate.begin(slot), slot))
            if times is not None:
                started = times.clock()
            result = await self._limiter.run_async(call, args, connection, seconds, client)
            outcome = Outcome.SUCCESS if proves else Outcome.NEUTRAL
        except StoppedError as stopped:
            if stopped.client_gone:
                raise self.abandoned(guard, seconds, out) from stopped.__cause__
            outcome = too_late(seconds, own=own)
            self.classifier.suspect()
            raise self.timed_out(guard, seconds, out, commit=commit) from stopped.__cause__
        except BaseException as error:
            outcome = self.classifier.outcome(error, connection, out, ending=ending, proves=proves)
            raise
        finally:
            while tickets:
                gate, ticket, slot = tickets.pop()
                gate.end(ticket, outcome, 0, slot)
            if token is not None:
                token.append(self._core.last)
            if times is not None and started is not None:
                times.used(started)
        return result

    def drop_openings(self) -> None:
        """Ends the openings for which no caller waits: their pool is closed."""
        self._limiter.drop_openings()

    async def connect_async(self, connect: Callable[..., Awaitable[Any]], arguments: dict[str, Any]) -> Any:
        """Opens a connection as evidence, within the time that is left; see `StatementRunner.connect`."""
        seconds, own = time_allowed(self._guard)
        if seconds is not None and seconds <= 0:
            self._gate.refuse("deadline_spent")
        tickets: list[tuple[LockedGate, int, int]] = []
        outcome, observation = Outcome.ABANDONED, None
        try:
            for gate in innermost(self._guard).call_settings.gates:
                tickets.append((gate, gate.begin(OPENING), OPENING))  # noqa: PERF401 - known at once, if the next raises
            if self._gate.core.enforces:
                connection = await self._limiter.connect_async(connect, arguments, seconds, self._backstop)
            else:
                observation = self.observe(None, tickets, seconds, own=own)
                connection = await connect(**arguments)
            outcome = Outcome.NEUTRAL
        except StoppedError as stopped:
            outcome = too_late(seconds, own=own)
            raise self.timed_out(self._guard, seconds) from stopped.__cause__
        except BaseException as error:
            outcome = self.classifier.outcome_of_connect(error)
            raise
        finally:
            end_observed(tickets, outcome, observation)
        return connection
