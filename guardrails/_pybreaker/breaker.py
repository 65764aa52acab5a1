"""`CircuitBreaker`, with pybreaker's interface and storages. Must not import guards.

docs/guides/pybreaker.md describes the flow of a call and the differences from pybreaker.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Never, TypeVar, overload

import pybreaker

from guardrails._pybreaker.circuit import Circuit, Transition
from guardrails._pybreaker.executor import UNFINISHED, Block, Executor
from guardrails._pybreaker.listeners import PybreakerListeners, is_pybreaker_listener
from guardrails._runtime.fork import renew_after_fork
from guardrails._util.checks import Faults, refuse_unknown

__all__ = ["CircuitBreaker"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class CircuitBreaker(pybreaker.CircuitBreaker):
    """Opens after ``fail_max`` failures in a row. A drop-in for `pybreaker.CircuitBreaker`.

    ::

        orders = CircuitBreaker(fail_max=5, reset_timeout=60)

        @orders                          # or: orders.call(load, 42); with orders.calling(): ...
        async def load(order_id): ...    # or: def

    Args:
        fail_max: Failures in a row that open the circuit.
        reset_timeout: Seconds for which it stays open before it admits a probe.
        success_threshold: Successes in half-open that close it.
        exclude: Exception classes and predicates ``(exception) -> bool``. Such exceptions are no evidence.
        listeners: Listeners of pybreaker's kind, or callables as in `guardrails.events`.
        state_storage: Holds state and counters; None keeps them in memory.
        name: A label for errors, events and logs.
        throw_new_error_on_trip: True, pybreaker's default, raises a `pybreaker.CircuitBreakerError` from the
            call that opens the circuit, with the call's own error as its cause. False raises the own error.
        clock: Returns a monotonic time in seconds.

    Raises:
        ConfigurationError: One or more settings are wrong; the message names each of them.
    """

    def __init__(
        self,
        fail_max: int = 5,
        reset_timeout: float = 60,
        success_threshold: int = 1,
        exclude: Iterable[type[BaseException] | Callable[[Any], bool]] | None = None,
        listeners: Sequence[Any] | None = None,
        state_storage: pybreaker.CircuitBreakerStorage | None = None,
        name: str | None = None,
        throw_new_error_on_trip: bool = True,  # noqa: FBT001, FBT002 - pybreaker's signature
        *,
        clock: Callable[[], float] = time.monotonic,
        **misspelt: Never,
    ) -> None:
        refuse_unknown("CircuitBreaker", misspelt, CircuitBreaker.__init__)
        rules: dict[str, Any] = {"exclude": _as_list(exclude), "listeners": _as_list(listeners), "name": name}
        _check(
            fail_max=fail_max,
            reset_timeout=reset_timeout,
            success_threshold=success_threshold,
            state_storage=state_storage,
            throw_new_error_on_trip=throw_new_error_on_trip,
            clock=clock,
            **rules,
        )
        storage = state_storage or pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)
        self._circuit = Circuit(
            storage,
            lambda: self._inc_counter(),  # noqa: PLW0108 - looked up at each call, as pybreaker does
            fail_max=fail_max,
            reset_timeout=reset_timeout,
            success_threshold=success_threshold,
            clock=clock,
        )
        super().__init__(**rules, state_storage=storage, throw_new_error_on_trip=throw_new_error_on_trip)
        self._connect(clock)

    def _connect(self, clock: Callable[[], float]) -> None:
        self._lock = self._circuit.lock
        self._notifier = PybreakerListeners(self, self._listeners, clock)
        self._executor = Executor(
            self._circuit,
            self._notifier,
            lambda error: self.is_system_error(error),  # noqa: PLW0108 - likewise
            new_error=self._throw_new_error_on_trip,
        )
        renew_after_fork(self._circuit)

    # --- one call ------------------------------------------------------------------------------

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Calls ``func``. A coroutine or generator that it returns is part of the call, to its end.

        Raises:
            CircuitOpenError: The circuit refused; ``func`` was not called.
        """
        executor = self._executor
        ticket = executor.admit()
        if self._listeners:
            self._notifier.before_call(func, args, kwargs)
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            executor.failed(ticket, error)
            raise
        if type(result) in UNFINISHED:
            return executor.wrap_unfinished(ticket, result)  # type: ignore[no-any-return]
        executor.succeeded(ticket)
        return result

    async def acall(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls and awaits ``func``; see ``call``."""
        executor = self._executor
        ticket = executor.admit()
        if self._listeners:
            self._notifier.before_call(func, args, kwargs)
        try:
            result = await func(*args, **kwargs)
        except BaseException as error:
            executor.failed(ticket, error)
            raise
        executor.succeeded(ticket)
        return result

    def call_async(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The name of ``acall`` in pybreaker."""
        return self.acall(func, *args, **kwargs)

    def calling(self) -> Any:
        """One call as a context manager, for ``with`` or ``async with``."""
        return Block(self._executor)

    @overload  # type: ignore[override] # pybreaker's own takes and returns anything
    def __call__(self, func: F, /) -> F: ...

    @overload
    def __call__(self, /, **options: bool) -> Callable[[F], F]: ...

    def __call__(self, /, *functions: Any, **options: bool) -> Any:
        """Decorates a function, synchronous or asynchronous. ``@breaker()`` works, too."""
        always_async = options.pop("__pybreaker_call_async", False)
        if options:
            raise TypeError(f"unknown options: {', '.join(sorted(options))}")

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            if always_async or inspect.iscoroutinefunction(func):

                @functools.wraps(func)
                async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
                    return await self.acall(func, *args, **kwargs)

                return async_wrapper

            @functools.wraps(func)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return self.call(func, *args, **kwargs)

            return wrapper

        return decorate(*functions) if functions else decorate

    def is_system_error(self, exception: BaseException) -> bool:
        """True if an exception is evidence: no excluded class or predicate matches it."""
        return not any(
            isinstance(exception, rule) if isinstance(rule, type) else rule(exception)
            for rule in self._excluded_exceptions
        )

    # --- state and settings --------------------------------------------------------------------

    @property
    def current_state(self) -> str:
        """The state in the storage: ``"closed"``, ``"open"`` or ``"half-open"``."""
        return self._circuit.stored_state()

    @property
    def state(self) -> Any:
        """The state as an object of pybreaker's. Reading it adopts what another process has stored."""
        transitions: list[Transition] = []
        self._circuit.adopt_stored_state(transitions)
        self._notifier.state_changed(transitions)
        return self._create_new_state(self._circuit.known_state)

    @state.setter
    def state(self, state: str) -> None:
        self._create_new_state(state)  # raises ValueError for an unknown state
        self._set(state)

    def open(self) -> bool:
        """Opens the circuit for one ``reset_timeout``. Returns ``throw_new_error_on_trip``."""
        self._set(pybreaker.STATE_OPEN)
        return self._throw_new_error_on_trip

    def half_open(self) -> None:
        """Admits the next calls as probes."""
        self._set(pybreaker.STATE_HALF_OPEN)

    def close(self) -> None:
        """Closes the circuit and resets the counters."""
        self._set(pybreaker.STATE_CLOSED)

    def _set(self, state: str) -> None:
        transitions: list[Transition] = []
        self._circuit.set(state, transitions)
        self._notifier.state_changed(transitions)

    @property
    def fail_max(self) -> int:
        """Failures in a row that open the circuit."""
        return self._circuit.fail_max

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        _check(fail_max=number)
        self._circuit.fail_max = number

    @property
    def reset_timeout(self) -> float:
        """Seconds for which the circuit stays open."""
        return self._circuit.reset_timeout

    @reset_timeout.setter
    def reset_timeout(self, timeout: float) -> None:
        _check(reset_timeout=timeout)
        self._circuit.reset_timeout = timeout

    @property
    def success_threshold(self) -> int:
        """Successes in half-open that close the circuit."""
        return self._circuit.success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        _check(success_threshold=threshold)
        self._circuit.success_threshold = threshold

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self._notifier.label()!r} {self._circuit.known_state}>"


def _as_list(given: Any) -> Any:
    """Copies an iterable to a list, which can be iterated twice; returns anything else unchanged."""
    return list(given) if isinstance(given, Iterable) else given


def _are_all(is_valid: Callable[[object], bool], given: object) -> bool:
    return given is None or (isinstance(given, list) and all(map(is_valid, given)))


_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "exclude": ("classes of exceptions and callables, or None", lambda given: _are_all(callable, given)),
    "listeners": (
        "pybreaker's listeners and callables, or None",
        lambda given: _are_all(lambda each: callable(each) or is_pybreaker_listener(each), given),
    ),
    "state_storage": (
        "a pybreaker.CircuitBreakerStorage or None",
        lambda given: isinstance(given, pybreaker.CircuitBreakerStorage | None),
    ),
    "name": ("a text or None", lambda given: isinstance(given, str | None)),
    "throw_new_error_on_trip": ("True or False", lambda given: isinstance(given, bool)),
    "clock": ("callable", callable),
}
"""The allowed values of each setting that is no number, in words and as a check."""


def _check(**settings: object) -> None:
    faults = Faults("CircuitBreaker")
    for field, value in settings.items():
        if field == "reset_timeout":
            faults.seconds(field, value, zero=True)
        elif field in _RULES:
            allowed, is_valid = _RULES[field]
            if not is_valid(value):
                faults.add(field, value, allowed)
        else:
            faults.count(field, value)
    faults.raise_if_any()
