"""How calls of every kind cross a `Circuit`: functions, coroutines, generators and blocks."""

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
from guardrails._runtime.classify import classify
from guardrails._runtime.scope import note_guard_error
from guardrails.errors import CircuitOpenError

__all__ = ["UNFINISHED", "Block", "Executor"]

T = TypeVar("T")

_log = logging.getLogger("guardrails")

_CLOSED = pybreaker.STATE_CLOSED

UNFINISHED = frozenset((types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType))
"""What a function may return that has not run yet."""


class Executor:
    """Admits calls, learns from how they end, and tells the listeners, with no lock held meanwhile.

    Args:
        circuit: What decides.
        voices: Who is told.
        is_evidence: Whether an exception counts; what it raises itself is logged.
        new_error: Whether the call that opens the circuit raises an error that says so.
    """

    def __init__(
        self,
        circuit: Circuit,
        voices: PybreakerListeners,
        is_evidence: Callable[[BaseException], object],
        *,
        new_error: bool,
    ) -> None:
        self.circuit = circuit
        self.voices = voices
        self._is_evidence = is_evidence
        self._new_error = new_error

    def admit(self) -> Ticket:
        """Lets a call in.

        Raises:
            CircuitOpenError: The circuit refuses.
        """
        circuit, voices = self.circuit, self.voices
        stored = circuit.stored_state()
        if stored == circuit.known == _CLOSED and not voices.listeners:
            return circuit.free_pass
        turns: list[Transition] = []
        verdict = circuit.admit(stored, turns)
        voices.turned(turns)
        if isinstance(verdict, Ticket):
            return verdict
        if voices.listeners:
            voices.rejected(verdict.retry_after)
        raise note_guard_error(CircuitOpenError(voices.label(), "circuit_open", verdict.retry_after))

    def succeeded(self, ticket: Ticket) -> None:
        """Ends a call that returned."""
        circuit, voices = self.circuit, self.voices
        if ticket is circuit.free_pass and not voices.listeners and not circuit.failures():
            return
        turns: list[Transition] = []
        circuit.succeed(ticket, turns)
        voices.turned(turns)
        voices.success()
        voices.finished(Outcome.SUCCESS, ticket.started)

    def failed(self, ticket: Ticket, error: BaseException) -> None:
        """Ends a call that raised ``error``, which the caller raises on.

        Raises:
            pybreaker.CircuitBreakerError: Instead, if this opened the circuit and that is wanted.
        """
        circuit, voices = self.circuit, self.voices
        outcome = classify(error, None)
        if outcome is not Outcome.FAILURE or not self._counts(error):
            circuit.give_back(ticket)
            voices.finished(Outcome.ABANDONED, ticket.started)
            return
        turns: list[Transition] = []
        tripped = circuit.fail(ticket, turns)
        voices.failure(error)
        voices.turned(turns)
        voices.finished(outcome, ticket.started)
        if tripped and self._new_error:
            what = "Trial call failed" if ticket.lease else "Failures threshold reached"
            raise pybreaker.CircuitBreakerError(f"{what}, circuit breaker opened") from error

    def _counts(self, error: BaseException) -> bool:
        try:
            return bool(self._is_evidence(error))
        except Exception:  # noqa: BLE001 - logged with its traceback
            _log.exception("an exclude rule of circuit %r raised; the error counts", self.voices.label())
            return True

    # --- what a function returned and has not run yet ------------------------------------------

    def postpone(self, ticket: Ticket, unfinished: Any) -> Any:
        """Makes what a call returned the call itself, which is admitted when it starts to run."""
        self.circuit.give_back(ticket)
        if isinstance(unfinished, types.CoroutineType):
            return self._awaiting(unfinished)
        if isinstance(unfinished, types.GeneratorType):
            return self._streaming(unfinished)
        return self._streaming_async(unfinished)

    async def _awaiting(self, coroutine: Coroutine[Any, Any, T]) -> T:
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

    def _streaming(self, stream: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        ticket = self.admit()
        try:
            result = yield from stream
        except BaseException as error:
            self.failed(ticket, error)
            raise
        self.succeeded(ticket)
        return result

    async def _streaming_async(self, stream: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
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
                except BaseException as thrown:  # noqa: BLE001 - it belongs to the stream
                    step = stream.athrow(thrown)
        except BaseException as error:
            self.failed(ticket, error)
            raise
        self.succeeded(ticket)


def _block() -> None:
    """What ``before_call`` gets as the function when the call is a block."""


class Block(ContextDecorator):
    """One call, for ``with`` or ``async with``; as a decorator, one for each call."""

    def __init__(self, crossing: Executor) -> None:
        self._crossing = crossing
        self._ticket: Ticket | None = None

    def _recreate_cm(self) -> Self:
        return type(self)(self._crossing)

    def __enter__(self) -> None:
        if self._ticket is not None:
            raise RuntimeError("a call is used once; ask the breaker for another")
        self._ticket = self._crossing.admit()
        self._crossing.voices.before_call(_block, (), {})

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._ticket is not None, "entered before"  # noqa: S101 - the language sees to it
        if error is None:
            self._crossing.succeeded(self._ticket)
        else:
            self._crossing.failed(self._ticket, error)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.__exit__(kind, error, trace)
