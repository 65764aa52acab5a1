"""Runs functions, coroutines, generators and blocks through a `Circuit`. Depends on listeners and errors."""

from __future__ import annotations

import logging
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import ContextDecorator
from typing import Any, Self, TypeVar

import pybreaker

from guardrails._core.outcome import Outcome
from guardrails._pybreaker.circuit import Circuit, Ticket, Transition
from guardrails._pybreaker.listeners import PybreakerListeners
from guardrails._runtime.outcomes import classify
from guardrails._runtime.scope import note_guard_error
from guardrails.errors import CircuitOpenError

__all__ = ["UNFINISHED", "Block", "Executor"]

T = TypeVar("T")

_log = logging.getLogger("guardrails")

_CLOSED = pybreaker.STATE_CLOSED

UNFINISHED = frozenset((types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType))
"""Types of returned objects whose work has not run yet."""


class Executor:
    """Admits calls, records how they end and notifies the listeners with no lock held.

    Args:
        circuit: Decides and records.
        notifier: Are notified.
        is_evidence: Returns True for an exception that counts. If it raises, that is logged and the exception
            counts.
        new_error: True to raise a `pybreaker.CircuitBreakerError` from the call that opens the circuit.
    """

    def __init__(
        self,
        circuit: Circuit,
        notifier: PybreakerListeners,
        is_evidence: Callable[[BaseException], object],
        *,
        new_error: bool,
    ) -> None:
        self.circuit = circuit
        self.notifier = notifier
        self._is_evidence = is_evidence
        self._new_error = new_error

    def admit(self) -> Ticket:
        """Admits a call.

        Raises:
            CircuitOpenError: The circuit refuses.
        """
        circuit, notifier = self.circuit, self.notifier
        stored = circuit.stored_state()
        if stored == circuit.known_state == _CLOSED and not notifier.listeners:
            return circuit.closed_ticket
        transitions: list[Transition] = []
        verdict = circuit.admit(stored, transitions)
        notifier.state_changed(transitions)
        if isinstance(verdict, Ticket):
            return verdict
        if notifier.listeners:
            notifier.rejected(verdict.retry_after)
        raise note_guard_error(CircuitOpenError(notifier.label(), "circuit_open", verdict.retry_after))

    def succeeded(self, ticket: Ticket) -> None:
        """Ends a call that returned."""
        circuit, notifier = self.circuit, self.notifier
        if ticket is circuit.closed_ticket and not notifier.listeners and not circuit.failures():
            return
        transitions: list[Transition] = []
        circuit.succeed(ticket, transitions)
        notifier.state_changed(transitions)
        notifier.success()
        notifier.finished(Outcome.SUCCESS, ticket.started)

    def failed(self, ticket: Ticket, error: BaseException) -> None:
        """Ends a call that raised ``error``. The caller re-raises the error.

        Raises:
            pybreaker.CircuitBreakerError: The call opened the circuit and ``new_error`` is set.
        """
        circuit, notifier = self.circuit, self.notifier
        outcome = classify(error, None)
        if outcome is not Outcome.FAILURE or not self._is_failure(error):
            circuit.release_permit(ticket)
            notifier.finished(Outcome.ABANDONED, ticket.started)
            return
        transitions: list[Transition] = []
        tripped = circuit.fail(ticket, transitions)
        notifier.failure(error)
        notifier.state_changed(transitions)
        notifier.finished(outcome, ticket.started)
        if tripped and self._new_error:
            what = "Trial call failed" if ticket.permit else "Failures threshold reached"
            raise pybreaker.CircuitBreakerError(f"{what}, circuit breaker opened") from error

    def _is_failure(self, error: BaseException) -> bool:
        try:
            return bool(self._is_evidence(error))
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception("an exclude rule of circuit %r raised; the error counts", self.notifier.label())
            return True

    # --- returned coroutines and generators ----------------------------------------------------

    def wrap_unfinished(self, ticket: Ticket, unfinished: Any) -> Any:
        """Wraps a returned coroutine or generator: it is admitted when it starts to run."""
        self.circuit.release_permit(ticket)
        if isinstance(unfinished, types.CoroutineType):
            return self._await_guarded(unfinished)
        if isinstance(unfinished, types.GeneratorType):
            return self._iterate_guarded(unfinished)
        return self._iterate_guarded_async(unfinished)

    async def _await_guarded(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            ticket = self.admit()
        except BaseException:
            coroutine.close()
            raise
        try:
            result = await coroutine
        except BaseException as error:
            self.failed(ticket, error)
            raise
        self.succeeded(ticket)
        return result

    def _iterate_guarded(self, stream: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        ticket = self.admit()
        try:
            result = yield from stream
        except BaseException as error:
            self.failed(ticket, error)
            raise
        self.succeeded(ticket)
        return result

    async def _iterate_guarded_async(self, stream: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
        ticket = self.admit()
        try:
            step = stream.asend(None)
            while True:
                try:
                    item = await step
                except StopAsyncIteration:
                    break
                try:
                    step = stream.asend((yield item))
                except GeneratorExit:
                    await stream.aclose()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - passed on to the stream
                    step = stream.athrow(thrown)
        except BaseException as error:
            self.failed(ticket, error)
            raise
        self.succeeded(ticket)


def _block() -> None:
    """Stands for the function in ``before_call`` when the call is a block."""


class Block(ContextDecorator):
    """One call, for ``with`` or ``async with``. As a decorator it makes one for each call."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._ticket: Ticket | None = None

    def _recreate_cm(self) -> Self:
        return type(self)(self._executor)

    def __enter__(self) -> None:
        if self._ticket is not None:
            raise RuntimeError("a call is used once; ask the breaker for another")
        self._ticket = self._executor.admit()
        self._executor.notifier.before_call(_block, (), {})

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._ticket is not None, "entered before"  # noqa: S101 - Python calls __enter__ first
        if error is None:
            self._executor.succeeded(self._ticket)
        else:
            self._executor.failed(self._ticket, error)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.__exit__(kind, error, trace)
