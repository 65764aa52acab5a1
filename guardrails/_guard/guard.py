"""The guard: one dependency's slots, circuit and timeout, for threads and asyncio tasks alike."""

from __future__ import annotations

import random as _random
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Never, ParamSpec, Protocol, TypeVar

from guardrails._core.breaker import Breaker, State
from guardrails._core.bulkhead import Bulkhead
from guardrails._core.gate import Gate
from guardrails._core.outcome import Outcome
from guardrails._core.policy import BreakerPolicy
from guardrails._core.shares import share
from guardrails._guard.auto_compartments import OTHER, AutoCompartments, CompartmentGate
from guardrails._guard.call import Call, run_async
from guardrails._guard.call_settings import CallSettings
from guardrails._guard.locked_gate import LockedGate
from guardrails._guard.snapshot import GuardSnapshot, take
from guardrails._guard.workload_names import WorkloadName
from guardrails._runtime.guard_log import log
from guardrails._util.callables import FINISHED, check_finished
from guardrails._util.checks import Faults, shown, unknown_option
from guardrails.errors import ConfigurationError
from guardrails.events import Listener

__all__ = [
    "COMPARTMENTS",
    "Attachment",
    "Guard",
    "attach",
    "compartment_for",
    "form_compartments",
    "forms_compartments",
    "set_compartments",
    "set_state",
    "shown_compartments",
    "with_compartments",
]

P = ParamSpec("P")
T = TypeVar("T")

_SUCCESS = Outcome.SUCCESS  # an enum's members are slow to reach in Python 3.11


class Attachment(Protocol):
    """What an integration leaves with the guard it attached to a pool."""

    @property
    def most(self) -> int | None:
        """The pool's capacity, or None."""

    def detach(self) -> None:
        """Puts the target back as it was."""


class Guard:
    """Bulkhead, circuit breaker and timeout of one dependency.

    ::

        db = Guard("orders-db", max_concurrent_calls=15)

        with db.call():                 # or: async with
            ...
        db.run(fetch, 42)               # or: await db.run_async(fetch, 42)

    Durations are seconds.

    Args:
        name: A label for errors, events and metrics.
        max_concurrent_calls: Slots. Calls beyond it wait, and beyond that are refused.
        max_wait_duration: How long a call may wait for a slot. Under lasting overload the wait drops
            to 5 ms by itself; 0 never waits.
        max_waiting: How many calls may wait at once; None means ``max_concurrent_calls``.
        timeout: What each call is given; None is unbounded. An asyncio call is cancelled at the
            deadline. A synchronous function cannot be stopped: it is told (`remaining`), and coming
            back late counts as a failure.
        breaker: When the circuit opens; None is no circuit.
        listeners: Called with events; see `guardrails.events`.
        clock: Where the time comes from; a monotonic reading in seconds.
        random: Where jitter comes from; returns a float in [0, 1).

    Raises:
        ConfigurationError: One or more arguments are wrong; all are named at once.
    """

    __slots__ = (
        "__weakref__",
        "_attachment",
        "_auto_compartments",
        "_max_waiting",
        "_may_have_compartments",
        "_parent",
        "_parts",
        "_share",
        "_timeout",
        "call_settings",
    )

    def __init__(
        self,
        name: str,
        *,
        max_concurrent_calls: int,
        max_wait_duration: float = 0.05,
        max_waiting: int | None = None,
        timeout: float | None = 5.0,
        breaker: BreakerPolicy | None = BreakerPolicy(),  # noqa: B008 - frozen
        listeners: Iterable[Listener] = (),
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
        **unknown: Never,
    ) -> None:
        for option in unknown:
            raise unknown_option("Guard", option, _OPTIONS)
        self._timeout = timeout
        self._max_waiting = max_waiting
        heard: Any = listeners
        heard = tuple(heard) if isinstance(heard, Iterable) else heard
        settings = (max_wait_duration, max_waiting, timeout, breaker, heard, clock, random)
        _check(name, max_concurrent_calls, dict(zip(_INHERITED, settings, strict=True)))
        queue = max_concurrent_calls if max_waiting is None else max_waiting
        core = Gate(Breaker(breaker, random), Bulkhead(max_concurrent_calls, queue))
        gate = LockedGate(name, core, clock=clock, max_wait=max_wait_duration, listeners=heard)
        self.call_settings = CallSettings(self, name, (gate,), breaker, timeout)
        self._parent: Guard | None = None
        self._share: int | None = None
        self._auto_compartments: AutoCompartments | None = None
        self._may_have_compartments = True
        self._parts: tuple[Guard, ...] = ()
        self._attachment: Attachment | None = None

    # --- passing through -----------------------------------------------------------------------

    def call(self, timeout: float | None = None) -> Call:
        """One call, for ``with`` or ``async with``.

        On a guard that is attached to a pool it takes no slot; the checkout inside does. It then opens
        a scope: the deadline, the compartment, and an early refusal while the circuit is open.

        Args:
            timeout: Seconds for this call instead of the guard's own timeout.

        Raises:
            ConfigurationError: ``timeout`` is not a number above 0.
        """
        if timeout is not None:
            faults = Faults(f"guard {self.name!r}")
            faults.seconds("timeout", timeout)
            faults.raise_if_any()
        return Call.waiting(self.call_settings, self.call_settings.timeout if timeout is None else timeout)

    def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls ``fn`` in one call and returns what it returns.

        Raises:
            RejectedError: The call did not start.
        """
        call_settings, call = self.call_settings, Call()
        # Once more in `guarded`, word for word: a function that both called would be one frame more a call.
        if not call.try_enter_fast(call_settings, call_settings.timeout):
            call.enter()
        try:
            result = fn(*args, **kwargs)
            if type(result) not in FINISHED:
                check_finished(fn, result, "await run_async() instead of run()")
            outcome = call_settings.judge(result) if call_settings.judges else _SUCCESS
            if not call.try_exit_fast(outcome):
                call.leave(None, outcome)
        except BaseException as error:
            try:
                call.leave(error)
            except BaseException:
                call.abandon()  # it was interrupted, at its first instruction
                raise
            raise
        return result

    async def run_async(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Awaits ``fn`` in one call and returns what it returns.

        Raises:
            RejectedError: The call did not start.
            CallTimeoutError: It started and was cancelled at its deadline.
        """
        call_settings = self.call_settings
        return await run_async(call_settings, call_settings.timeout, fn, args, kwargs)

    # --- looking -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The label."""
        return self.call_settings.name

    @property
    def timeout(self) -> float | None:
        """Seconds each call is given, or None."""
        return self._timeout

    @property
    def state(self) -> State:
        """The circuit's state. Reading it changes nothing."""
        return self._gate.core.breaker.state

    def snapshot(self) -> GuardSnapshot:
        """The figures of this moment. Reading them changes nothing."""
        gate = self._gate
        with gate.lock:
            return take(gate.clock(), self.name, gate.core)

    def __reduce__(self) -> Never:
        """Refuses to be pickled or copied: slots and circuits are of one process."""
        raise TypeError(
            f"guard {self.name!r} cannot be pickled or copied: make one in each process, where it is imported"
        )

    @property
    def _gate(self) -> LockedGate:
        return self.call_settings.gates[0]

    def __repr__(self) -> str:
        core = self._gate.core
        slots = core.bulkhead
        return (
            f"<Guard {self.name!r} {core.breaker.state}, {slots.taken}/{slots.limit} busy, "
            f"{len(slots.queue)} waiting>"
        )

    # --- by hand -------------------------------------------------------------------------------

    def force_open(self) -> None:
        """Refuses every call until `reset` or another manual state."""
        set_state(self, "forced_open")

    def disable(self) -> None:
        """Lets every call pass the circuit and learns nothing; the bulkhead still holds."""
        set_state(self, "disabled")

    def metrics_only(self) -> None:
        """Records and never opens; says once when it would have (a StateChanged with ``old == new``)."""
        set_state(self, "metrics_only")

    def reset(self) -> None:
        """Back to closed, with empty windows; likewise the compartments that formed by themselves."""
        set_state(self, "reset")

    def resize(self, max_concurrent_calls: int) -> None:
        """Changes the number of slots at once, without waiting.

        Calls beyond a smaller number run to their end; a larger one wakes waiting callers. Compartments
        of default size follow.

        Raises:
            ConfigurationError: Not a whole number above 0, or above what the parent has.
        """
        faults = Faults(f"guard {self.name!r}")
        most = self._attachment.most if self._attachment else None
        if self._parent is not None:
            most = self._parent.snapshot().max_concurrent_calls
        faults.count("max_concurrent_calls", max_concurrent_calls, most=most)
        faults.raise_if_any()
        self._gate.step(self._gate.core.resize, max_concurrent_calls)
        if self._parent is not None and self._parent._auto_compartments is not None:
            self._parent._auto_compartments.keep_size(self._gate)
        if self._auto_compartments is not None:
            self._auto_compartments.resize(max_concurrent_calls)
            return
        for part in self.compartments:
            if part._share is None:
                part.resize(share(max_concurrent_calls))

    # --- parts ---------------------------------------------------------------------------------

    def compartment(self, name: str, *, max_concurrent_calls: int | None = None, **options: Any) -> Guard:
        """A part of this guard for one workload, so that it cannot sink the rest.

        A call through it needs a slot in both and is evidence in both; each has its own circuit, and
        this guard's opens only for trouble that is more than one workload's. On a guard attached
        to a pool, checkouts made inside the compartment's calls belong to it.

        Args:
            name: Its label. Asked for again without options, the same compartment is returned.
            max_concurrent_calls: Its slots; None is 70 % of this guard's, rounded down, at least 1.
            **options: As for `Guard`; what is not given is this guard's own.

        Raises:
            ConfigurationError: An argument is wrong, the name is taken, or this guard has no compartments.
        """
        if not self._may_have_compartments:
            raise ConfigurationError(
                f"guard {self.name!r} was made with compartments='none'; "
                "with 'declared' or 'auto' it can have some"
            )
        if known := self._part(name):
            if max_concurrent_calls is None and not options:
                return known
            raise ConfigurationError(f"guard {self.name!r} has a compartment {name!r} already")
        part = self._new_part(name, max_concurrent_calls, options, elastic=False)
        if self._auto_compartments is not None:
            self._auto_compartments.divide()
        return part

    def _new_part(
        self, name: str, max_concurrent_calls: int | None, options: dict[str, Any], *, elastic: bool
    ) -> Guard:
        total = self._gate.core.bulkhead.limit
        faults = Faults(f"compartment {shown(name)}")
        faults.count("max_concurrent_calls", max_concurrent_calls, none=True, most=total)
        faults.raise_if_any()
        part = Guard(
            name,
            max_concurrent_calls=max_concurrent_calls or share(total),
            **{**self._inherited(), **options},
        )
        part._parent = self
        part._share = max_concurrent_calls
        own = part._inherited()
        gate = CompartmentGate(
            name,
            part._gate.core,
            clock=own["clock"],
            max_wait=own["max_wait_duration"],
            listeners=own["listeners"],
        )
        part.call_settings = CallSettings(
            part, name, (gate, *self._parent_gates(gate)), part.call_settings.policy, part._timeout
        )
        gate.errors = self._gate.errors
        gate.join(self._gate.report)
        part.call_settings.has_own_timeout = "timeout" in options or self.call_settings.has_own_timeout
        attach(part, self._attachment)
        with self._gate.lock:  # two threads may have come here at once
            known = self._part(name)
            if known is None:
                self._parts += (part,)
        if known is None and self._auto_compartments is not None:
            self._auto_compartments.add(gate, elastic=elastic)
        return known or part

    def _parent_gates(self, gate: LockedGate) -> tuple[LockedGate, ...]:
        """The ways of a compartment's calls through the gates of this guard: evidence of its own workload."""
        own, *further = self.call_settings.gates
        return (own.workload_gate(gate), *further)

    def _part(self, name: str) -> Guard | None:
        return next((part for part in self._parts if part.name == name), None)

    def _inherited(self) -> dict[str, Any]:
        gate = self._gate
        return {
            "max_wait_duration": gate.max_wait,
            "max_waiting": self._max_waiting,
            "timeout": self._timeout,
            "breaker": self.call_settings.policy,
            "listeners": gate.listeners,
            "clock": gate.clock,
            "random": gate.core.breaker.random,
        }

    @property
    def compartments(self) -> tuple[Guard, ...]:
        """The parts, in the order they were made."""
        return self._parts

    # --- attached to a pool --------------------------------------------------------------------

    def detach(self) -> None:
        """Undoes `protect`: the target is as it was before, what is checked out now included.

        Raises:
            ConfigurationError: This guard is not attached to anything, or is a compartment.
        """
        if self._attachment is None or self._parent is not None:
            raise ConfigurationError(f"guard {self.name!r} is not attached to anything")
        self._attachment.detach()
        attach(self, None)


def set_state(guard: Guard, transition: str) -> None:
    """Changes the state of a guard's circuit by hand, and with it those of what formed by itself."""
    guard._gate.step(guard._gate.core.set_state, transition)
    if guard._auto_compartments is not None:
        guard._auto_compartments.set_state(transition)
    if guard._parent is not None and guard._parent._auto_compartments is not None:
        guard._parent._auto_compartments.divide()  # or its calls would not notice


def attach(guard: Guard, attachment: Attachment | None) -> None:
    """Notes what a guard and all its parts are attached to; None for nothing any more."""
    guard._attachment = attachment
    if attachment is not None and guard._parent is None:
        _log_protection(guard)
    guard.call_settings.attach(guard._timeout, attached=attachment is not None)
    gate = guard.call_settings.gates[0]
    gate.step(gate.core.watch_for_stalls, on=attachment is not None)
    if attachment is None:
        gate.step(lambda _: gate.core.drop_calls_and_waiters())
    for part in guard.compartments:
        attach(part, attachment)


def _log_protection(guard: Guard) -> None:
    slots, policy, timeout = guard._gate.core.bulkhead.limit, guard.call_settings.policy, guard._timeout
    circuit = "no circuit"
    if policy is not None:
        circuit = (
            f"the circuit opens at {policy.failure_rate_threshold:.0%} failed or "
            f"{policy.slow_call_rate_threshold:.0%} slower than {policy.slow_call_duration_threshold:g} s"
        )
    limit = "no timeout" if timeout is None else f"timeout {timeout:g} s"
    log.info("guard %r protects: %d slots, %s, %s", guard.name, slots, limit, circuit)


# --- compartments that form by themselves ------------------------------------------------------

COMPARTMENTS = ("auto", "declared", "none")
"""The allowed values of a pool's setting ``compartments``; the first is the default."""


def set_compartments(guard: Guard, how: str) -> None:
    """Sets where a guard's compartments come from: one of `COMPARTMENTS`."""
    guard._may_have_compartments = how != "none"
    if how == "auto":
        form_compartments(guard)


def form_compartments(guard: Guard) -> None:
    """Makes a guard form its compartments by itself, one for each `workload`."""
    guard._auto_compartments = auto_compartments = AutoCompartments(guard._gate)
    guard.call_settings.auto_compartments = auto_compartments
    for part in guard._parts:
        gate = part._gate
        if isinstance(gate, CompartmentGate):
            auto_compartments.add(gate, elastic=False)
        auto_compartments.divide()


def forms_compartments(guard: Guard) -> bool:
    """Whether a guard's compartments form by themselves."""
    return guard._auto_compartments is not None


def compartment_for(guard: Guard, key: str, name: str | None = None) -> Guard:
    """The compartment of one workload, formed if it is new; the guard itself if it does not sort calls.

    Args:
        guard: The guard.
        key: What tells the workload from all others.
        name: The compartment's name while nobody else has that; None is the key.
    """
    if guard._auto_compartments is None:
        return guard

    def form(found: str) -> Guard:
        wanted = _fitting(found if name is None or found == OTHER else name)
        if guard._part(wanted) is not None:
            wanted = _fitting(found)
        known = guard._part(wanted)
        return known or guard._new_part(WorkloadName(wanted, guard.name), None, {}, elastic=True)

    part: Guard = guard._auto_compartments.find(key, form)
    return part


def _fitting(name: str) -> str:
    """A compartment's name that is no longer than a guard's may be, and still its own."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}~{zlib.crc32(name.encode(errors='replace')):08x}"


def with_compartments(guards: Iterable[Guard]) -> Iterator[Guard]:
    """The guards, each followed by all its compartments."""
    for guard in guards:
        yield guard
        yield from with_compartments(guard._parts)


def shown_compartments(guard: Guard) -> tuple[Guard, ...]:
    """The compartments to show beside a guard: none as long as the guard is its only workload."""
    auto_compartments = guard._auto_compartments
    return guard._parts if auto_compartments is None or auto_compartments.divided else ()


_INHERITED = ("max_wait_duration", "max_waiting", "timeout", "breaker", "listeners", "clock", "random")
"""What a compartment takes over from its guard, unless it is given its own."""

_LONGEST_NAME = 200
"""Characters of a guard's name: it is in every error, log line and metric."""

_OPTIONS = ("name", "max_concurrent_calls", *_INHERITED)


def _check(name: object, limit: object, settings: Mapping[str, Any]) -> None:
    faults = Faults(f"guard {shown(name)}")
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        faults.add("name", name, f"a text of 1 to {_LONGEST_NAME} characters")
    faults.count("max_concurrent_calls", limit)
    faults.seconds("max_wait_duration", settings["max_wait_duration"], zero=True)
    faults.count("max_waiting", settings["max_waiting"], least=0, none=True)
    faults.seconds("timeout", settings["timeout"], none=True)
    if not isinstance(settings["breaker"], BreakerPolicy | None):
        faults.add("breaker", settings["breaker"], "a BreakerPolicy or None")
    listeners = settings["listeners"]
    if not isinstance(listeners, tuple) or not all(map(callable, listeners)):
        faults.add("listeners", listeners, "callables")
    faults.callable("clock", settings["clock"], none=False)
    faults.callable("random", settings["random"], none=False)
    faults.raise_if_any()
