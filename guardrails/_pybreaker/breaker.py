"""`CircuitBreaker`: pybreaker's surface and storages, none of its hot path. Knows calls, not the circuit.

docs/pybreaker.md says how a call goes and what differs from pybreaker.
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
from guardrails._pybreaker.listeners import PybreakerListeners, is_old
from guardrails._runtime.fork import renew_after_fork
from guardrails._util.checks import Faults, refuse_unknown

__all__ = ["CircuitBreaker"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class CircuitBreaker(pybreaker.CircuitBreaker):
    """Opens after so many failures in a row. A drop-in for `pybreaker.CircuitBreaker`.

    ::

        orders = CircuitBreaker(fail_max=5, reset_timeout=60)

        @orders                          # or: orders.call(load, 42); with orders.calling(): ...
        async def load(order_id): ...    # or: def

    Args:
        fail_max: Failures in a row that open the circuit.
        reset_timeout: Seconds it stays open before a probe is let in.
        success_threshold: Successes in half-open that close it.
        exclude: Exception classes and predicates ``(exception) -> bool`` that are no evidence.
        listeners: pybreaker's listener objects, or callables as in `guardrails.events`.
        state_storage: Where state and counters live; None keeps them in memory.
        name: A label for errors, events and logs.
        throw_new_error_on_trip: True, pybreaker's default, replaces the error of the call that opens the
            circuit by a `pybreaker.CircuitBreakerError`, whose cause it becomes. False raises the call's own.
        clock: Where the time comes from; a monotonic reading in seconds.

    Raises:
        ConfigurationError: One or more settings are wrong; all are named at once.
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
        rules: dict[str, Any] = {"exclude": _listed(exclude), "listeners": _listed(listeners), "name": name}
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
        self._voices = PybreakerListeners(self, self._listeners, clock)
        self._crossing = Executor(
            self._circuit,
            self._voices,
            lambda error: self.is_system_error(error),  # noqa: PLW0108 - likewise
            new_error=self._throw_new_error_on_trip,
        )
        renew_after_fork(self._circuit)

    # --- one call ------------------------------------------------------------------------------

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Calls ``func``. If that returns a coroutine or a generator, it is measured to its end.

        Raises:
            CircuitOpenError: The circuit refuses; ``func`` was not called.
        """
        crossing = self._crossing
        ticket = crossing.admit()
        if self._listeners:
            self._voices.before_call(func, args, kwargs)
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            crossing.failed(ticket, error)
            raise
        if type(result) in UNFINISHED:
            return crossing.postpone(ticket, result)  # type: ignore[no-any-return]
        crossing.succeeded(ticket)
        return result

    async def acall(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Awaits ``func``; see ``call``."""
        crossing = self._crossing
        ticket = crossing.admit()
        if self._listeners:
            self._voices.before_call(func, args, kwargs)
        try:
            result = await func(*args, **kwargs)
        except BaseException as error:
            crossing.failed(ticket, error)
            raise
        crossing.succeeded(ticket)
        return result

    def call_async(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The name that pybreaker gave ``acall``."""
        return self.acall(func, *args, **kwargs)

    def calling(self) -> Any:
        """One call, for ``with`` or ``async with``."""
        return Block(self._crossing)

    @overload  # type: ignore[override] # pybreaker's own takes and returns anything
    def __call__(self, func: F, /) -> F: ...

    @overload
    def __call__(self, /, **options: bool) -> Callable[[F], F]: ...

    def __call__(self, /, *functions: Any, **options: bool) -> Any:
        """Decorates a function, asynchronous or not; also written ``@breaker()``."""
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
        """Whether an exception is evidence: none of the excluded classes and predicates holds for it."""
        return not any(
            isinstance(exception, rule) if isinstance(rule, type) else rule(exception)
            for rule in self._excluded_exceptions
        )

    # --- looking and setting -------------------------------------------------------------------

    @property
    def current_state(self) -> str:
        """The state as the storage has it: ``"closed"``, ``"open"`` or ``"half-open"``."""
        return self._circuit.stored_state()

    @property
    def state(self) -> Any:
        """The state as pybreaker's object; takes over what another process has stored."""
        turns: list[Transition] = []
        self._circuit.notice(turns)
        self._voices.turned(turns)
        return self._create_new_state(self._circuit.known)

    @state.setter
    def state(self, state: str) -> None:
        self._create_new_state(state)  # an unknown word is a ValueError
        self._set(state)

    def open(self) -> bool:
        """Opens the circuit for one ``reset_timeout``. Returns ``throw_new_error_on_trip``."""
        self._set(pybreaker.STATE_OPEN)
        return self._throw_new_error_on_trip

    def half_open(self) -> None:
        """Lets the next calls in as probes."""
        self._set(pybreaker.STATE_HALF_OPEN)

    def close(self) -> None:
        """Closes the circuit and sets the counters to zero."""
        self._set(pybreaker.STATE_CLOSED)

    def _set(self, state: str) -> None:
        turns: list[Transition] = []
        self._circuit.set(state, turns)
        self._voices.turned(turns)

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
        """Seconds the circuit stays open."""
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
        return f"<CircuitBreaker {self._voices.label()!r} {self._circuit.known}>"


def _listed(given: Any) -> Any:
    """Several things as a list, which can be looked through twice; anything else as it is."""
    return list(given) if isinstance(given, Iterable) else given


def _all(is_so: Callable[[object], bool], given: object) -> bool:
    return given is None or (isinstance(given, list) and all(map(is_so, given)))


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "exclude": ("classes of exceptions and callables, or None", lambda given: _all(callable, given)),
    "listeners": (
        "pybreaker's listeners and callables, or None",
        lambda given: _all(lambda each: callable(each) or is_old(each), given),
    ),
    "state_storage": (
        "a pybreaker.CircuitBreakerStorage or None",
        lambda given: isinstance(given, pybreaker.CircuitBreakerStorage | None),
    ),
    "name": ("a text or None", lambda given: isinstance(given, str | None)),
    "throw_new_error_on_trip": ("True or False", lambda given: isinstance(given, bool)),
    "clock": ("callable", callable),
}
"""What a setting must be that is no number, and whether it is."""


def _check(**settings: object) -> None:
    faults = Faults("CircuitBreaker")
    for field, value in settings.items():
        if field == "reset_timeout":
            faults.seconds(field, value, zero=True)
        elif field in _KINDS:
            allowed, is_so = _KINDS[field]
            if not is_so(value):
                faults.add(field, value, allowed)
        else:
            faults.count(field, value)
    faults.raise_if_any()
