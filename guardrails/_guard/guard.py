"""The guard: slots, circuit and timeout of one dependency, for threads and asyncio tasks.

Depends on gates, calls and compartments; must not import pools, drivers or frameworks.
"""

from __future__ import annotations

import random as _random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Never, ParamSpec, TypeVar, cast
from weakref import ref

from guardrails._core.adaptive import Adaptive, AdaptiveLimit
from guardrails._core.breaker import Breaker, State
from guardrails._core.bulkhead import Bulkhead
from guardrails._core.gate import Gate
from guardrails._core.outcome import Outcome
from guardrails._core.policy import BreakerPolicy
from guardrails._core.shadow import MODES, Mode
from guardrails._core.shares import share
from guardrails._guard.attachment import Attachment, FleetPart, Lease, Upkeep
from guardrails._guard.auto_compartments import AutoCompartments, CompartmentGate
from guardrails._guard.call import Call, run_async
from guardrails._guard.call_settings import CallSettings
from guardrails._guard.environment import fill_from_environment, log_mode, mode_from_environment
from guardrails._guard.guard_settings import DEFAULTS, INHERITED, OPTIONS, check_settings
from guardrails._guard.locked_gate import LockedGate
from guardrails._guard.mode import VARIABLE, is_switched_off, resolve
from guardrails._guard.pool_snapshot import PoolSnapshot
from guardrails._guard.snapshot import GuardSnapshot, take
from guardrails._runtime.guard_log import log
from guardrails._util.callables import FINISHED, check_finished
from guardrails._util.checks import Faults, shown, unknown_option
from guardrails._util.names import CompartmentName, fields_of
from guardrails.errors import ConfigurationError
from guardrails.events import Listener

__all__ = [
    "LONG_TIMEOUT",
    "Guard",
    "attach",
    "attachment_of",
    "guard_of_settings",
    "lease_of",
    "note_orders",
    "recent_events",
    "set_slots",
    "set_state",
    "snapshot_of",
    "switch",
]

P = ParamSpec("P")
T = TypeVar("T")

LONG_TIMEOUT = 500.0
"""Seconds from which a timeout of a pool or request is more likely meant in milliseconds."""

_SUCCESS = Outcome.SUCCESS  # an enum's members are slow to reach in Python 3.11


class Guard:
    """Bulkhead, circuit breaker and timeout of one dependency.

    ::

        db = Guard("orders-db", max_concurrent_calls=15)

        with db.call():                 # or: async with
            ...
        db.run(fetch, 42)               # or: await db.run_async(fetch, 42)

    Durations are seconds. Environment variables such as ``GUARDRAILS_ORDERS_DB_TIMEOUT`` fill the settings
    that are left at their default.

    Args:
        name: A label for errors, events and metrics.
        max_concurrent_calls: Slots. Further calls wait in the queue; calls beyond the queue are refused. An
            `Adaptive` is a number that follows the throughput.
        max_wait_duration: Longest time that a call waits for a slot; 0 refuses at once. If the queue has
            not been empty for 0.3 s, new callers wait at most 5 ms.
        max_waiting: Maximum number of waiting calls; None means ``max_concurrent_calls``.
        timeout: Time that each call may take; None is unbounded. An asyncio call is cancelled at its
            deadline. A synchronous function cannot be stopped: it can read `remaining`, and a late return
            counts as a failure.
        breaker: The rules of the circuit; None is no circuit.
        mode: ``"enforce"``; ``"shadow"``, which refuses, queues and stops nothing and counts what it would
            have done; or ``"off"``. None takes that of the environment, ``GUARDRAILS_MODE``, and without one
            ``"enforce"``. ``GUARDRAILS_MODE=off`` switches off every guard, whatever it was given. A
            variable of the guard's own, ``GUARDRAILS_ORDERS_DB_MODE``, counts if it is less intrusive.
        fleet: A budget of a `guardrails.fleet.Fleet`: the calls of all workers share its slots, and
            ``max_concurrent_calls`` is the most that this process may be given. Or a verdict of one: the
            circuit opens and closes with those of the other workers; a budget has one, too.
        listeners: Called with events; see `guardrails.events`.
        clock: Returns the time in seconds; must be monotonic.
        random: Returns a float in [0, 1), for the jitter of open periods.

    Raises:
        ConfigurationError: One or more arguments are wrong; the message names each of them.
    """

    __slots__ = (
        "__weakref__",
        "_attachment",
        "_auto_compartments",
        "_compartments",
        "_max_waiting",
        "_may_have_compartments",
        "_orders",
        "_parent",
        "_share",
        "_timeout",
        "call_settings",
    )

    def __init__(
        self,
        name: str,
        *,
        max_concurrent_calls: int | Adaptive,
        max_wait_duration: float = 0.05,
        max_waiting: int | None = None,
        timeout: float | None = 5.0,
        breaker: BreakerPolicy | None = BreakerPolicy(),  # noqa: B008 - frozen
        mode: Mode | None = None,
        fleet: FleetPart | None = None,
        listeners: Iterable[Listener] = (),
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
        **unknown: Never,
    ) -> None:
        for option in unknown:
            raise unknown_option("Guard", option, OPTIONS)
        given = (max_wait_duration, max_waiting, timeout, breaker, listeners, clock, random)
        settings = dict(zip(INHERITED, given, strict=True))
        settings = fill_from_environment(name, settings, DEFAULTS)
        self._build(name, max_concurrent_calls, mode, settings, mode_from_environment(name))
        if fleet is not None:
            if not hasattr(fleet, "enroll"):
                faults = Faults(f"guard {self.name!r}")
                faults.add("fleet", fleet, "a budget or verdict, as a Fleet's methods return them, or None")
                faults.raise_if_any()
            self._gate.fleet_member = fleet.enroll(self)

    def _build(
        self,
        name: str,
        limit: int | Adaptive,
        mode: Mode | None,
        settings: dict[str, Any],
        own_mode: Mode | None = None,
    ) -> None:
        called = settings["listeners"]
        called = settings["listeners"] = tuple(called) if isinstance(called, Iterable) else called
        slots = check_settings(name, limit, mode, settings)
        self._timeout: float | None = settings["timeout"]
        self._max_waiting: int | None = settings["max_waiting"]
        queue = slots if self._max_waiting is None else self._max_waiting
        adaptive = None
        if isinstance(limit, Adaptive):
            adaptive = AdaptiveLimit(limit.minimum, slots, enforces=limit.mode == "enforce")
        core = Gate(Breaker(settings["breaker"], settings["random"]), Bulkhead(slots, queue), adaptive)
        wait = settings["max_wait_duration"]
        gate = LockedGate(name, core, clock=settings["clock"], max_wait=wait, listeners=called)
        if adaptive is not None:
            gate.share_slots = partial(_share_out, ref(self))
        self.call_settings = CallSettings(self, name, (gate,), settings["breaker"], self._timeout)
        self._parent: Guard | None = None
        self._share: int | None = None
        self._auto_compartments: AutoCompartments | None = None
        self._may_have_compartments = True
        self._compartments: tuple[Guard, ...] = ()
        self._attachment: Attachment | None = None
        self._orders: dict[str, dict[str, str]] = {}
        wanted = resolve(mode, own_mode)
        if own_mode is not None:
            log_mode(name, own_mode, wanted)
        if wanted != "enforce":
            switch(self, wanted)

    # --- calls ---------------------------------------------------------------------------------

    def call(self, timeout: float | None = None) -> Call:
        """Makes one call, for ``with`` or ``async with``.

        On a guard that is attached to a pool it takes no slot, because the checkout inside takes one. It
        opens a scope with the deadline and the compartment, and is refused while the circuit is open.

        Args:
            timeout: Seconds for this call instead of the guard's timeout.

        Raises:
            ConfigurationError: ``timeout`` is not a number above 0.
        """
        if timeout is not None:
            faults = Faults(f"guard {self.name!r}")
            faults.seconds("timeout", timeout)
            faults.raise_if_any()
        return Call.waiting(self.call_settings, self.call_settings.timeout if timeout is None else timeout)

    def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls ``fn`` in one call and returns its result.

        Raises:
            RejectedError: The call did not start.
        """
        call_settings, call = self.call_settings, Call()
        # `guarded` has a copy of these lines: a shared function would cost each call a frame.
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
                call.abandon()  # `leave` was interrupted at its first instruction
                raise
            raise
        return result

    async def run_async(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Awaits ``fn`` in one call and returns its result.

        Raises:
            RejectedError: The call did not start.
            CallTimeoutError: It started and was cancelled at its deadline.
        """
        call_settings = self.call_settings
        return await run_async(call_settings, call_settings.timeout, fn, args, kwargs)

    # --- reading -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name in errors, events and metrics."""
        return self.call_settings.name

    @property
    def timeout(self) -> float | None:
        """Seconds that each call may take; None is unbounded."""
        return self._timeout

    @property
    def state(self) -> State:
        """The circuit's state. Reading it changes nothing."""
        return self._gate.core.breaker.state

    def snapshot(self) -> GuardSnapshot:
        """The present figures. Reading them changes nothing."""
        attachment = self._attachment
        return snapshot_of(
            self, None if attachment is None or self._parent is not None else attachment.figures()
        )

    def __reduce__(self) -> Never:
        """Refuses to be pickled or copied: slots and circuits belong to one process."""
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

    @property
    def mode(self) -> Mode:
        """``"enforce"``, ``"shadow"`` or ``"off"``; see `set_mode`."""
        return self._gate.core.mode

    # --- manual control ------------------------------------------------------------------------

    def set_mode(self, mode: Mode) -> None:
        """Changes the mode of this guard and its compartments at once, with any calls under way.

        ``"shadow"`` lets every call in and stops none. It counts the calls that enforcing would refuse or
        stop (``would_reject``, ``would_stop``), and the circuit changes its state as when enforcing.
        ``"off"`` lets every call pass and learns nothing. While the environment has ``GUARDRAILS_MODE=off``,
        the guard stays off, and a warning is logged.

        Raises:
            ConfigurationError: It is no mode, or this is a compartment, which has the mode of its guard.
        """
        faults = Faults(f"guard {self.name!r}")
        faults.choice("mode", mode, MODES)
        faults.raise_if_any()
        if self._parent is not None:
            raise ConfigurationError(
                f"compartment {self.name!r} has the mode of its guard; set that of {self._parent.name!r}"
            )
        if mode != "off" and is_switched_off():
            log.warning(
                "guard %r stays off: %s=off is in the environment",
                self.name,
                VARIABLE,
                extra=fields_of(self.name),
            )
            mode = "off"
        if mode != self.mode:
            log.warning("guard %r: mode %s -> %s", self.name, self.mode, mode, extra=fields_of(self.name))
        switch(self, mode)

    def force_open(self) -> None:
        """Refuses every call until `reset` or another manual state."""
        set_state(self, "forced_open")

    def disable(self) -> None:
        """Switches the circuit off: it admits every call and records no evidence. The bulkhead stays on."""
        set_state(self, "disabled")

    def metrics_only(self) -> None:
        """Records evidence and never opens. A StateChanged with ``old == new`` reports that it would have."""
        set_state(self, "metrics_only")

    def reset(self) -> None:
        """Closes the circuit and those of automatic compartments, and forgets their evidence."""
        set_state(self, "reset")

    def resize(self, max_concurrent_calls: int) -> None:
        """Changes the number of slots at once, without waiting.

        Calls in excess of a smaller number run to their end. A larger number wakes waiting callers.
        Compartments of the default size change in proportion, until their own is set. Of an adaptive limit,
        it is the maximum.
        On a guard attached to a pool, idle connections in excess of a smaller number are closed, and the
        others when they return. With a fleet's budget, it is the most that a lease may give.

        Raises:
            ConfigurationError: It is not a whole number above 0, or exceeds the slots of the parent or pool.
        """
        faults = Faults(f"guard {self.name!r}")
        most = self._attachment.most if self._attachment else None
        if self._parent is not None:
            most = self._parent._most_slots()
        adaptive = self._gate.core.adaptive
        least = 1 if adaptive is None else adaptive.minimum
        faults.count("max_concurrent_calls", max_concurrent_calls, least=least, most=most)
        faults.raise_if_any()
        lease = lease_of(self)
        set_slots(self, max_concurrent_calls if lease is None else lease.resize(max_concurrent_calls))
        if self._parent is not None:
            self._share = max_concurrent_calls
            if self._parent._auto_compartments is not None:
                self._parent._auto_compartments.keep_size(cast("CompartmentGate", self._gate))

    def _most_slots(self) -> int:
        """The slots of this guard; with a lease, the most that it may give."""
        lease = lease_of(self)
        return self._gate.core.bulkhead.limit if lease is None else lease.ceiling

    # --- compartments --------------------------------------------------------------------------

    def compartment(self, name: str, *, max_concurrent_calls: int | None = None, **options: Any) -> Guard:
        """A part of this guard for one workload, which cannot use all slots or open the circuit for the rest.

        A call through it needs a slot in both and is evidence for both circuits. This guard's circuit opens
        only for a failure that affects more than one workload. On a guard that is attached to a pool,
        checkouts inside the compartment's calls belong to it.

        Args:
            name: Its name. Without options, a known name returns the existing compartment.
            max_concurrent_calls: Its slots; None is 70 % of this guard's, rounded down, at least 1.
            **options: As for `Guard`. The defaults are this guard's settings.

        Raises:
            ConfigurationError: An argument is wrong, the name is taken, or this guard was made without
                compartments.
        """
        if not self._may_have_compartments:
            if self._compartments or self._parent is not None:
                raise ConfigurationError(
                    f"guard {self.name!r} has a compartment for each server, and no others"
                )
            raise ConfigurationError(
                f"guard {self.name!r} was made with compartments='none'; "
                "with 'declared' or 'auto' it can have some"
            )
        if "mode" in options:
            raise ConfigurationError(
                f"compartment {shown(name)} has the mode of its guard; set that of {self.name!r}"
            )
        if known := self._find_compartment(name):
            if max_concurrent_calls is None and not options:
                return known
            raise ConfigurationError(f"guard {self.name!r} has a compartment {name!r} already")
        compartment = self._new_compartment(name, max_concurrent_calls, options, automatic=False)
        if self._auto_compartments is not None:
            self._auto_compartments.divide()
        return compartment

    def _new_compartment(
        self, name: str, max_concurrent_calls: int | None, options: dict[str, Any], *, automatic: bool
    ) -> Guard:
        faults = Faults(f"compartment {shown(name)}")
        most, why = self._most_slots(), f" (the slots of {self.name!r})"
        faults.count("max_concurrent_calls", max_concurrent_calls, none=True, most=most, why=why)
        faults.raise_if_any()
        for option in options:
            if option not in INHERITED:
                raise unknown_option("Guard", option, OPTIONS)
        if isinstance(name, str):  # otherwise the check below refuses it
            name = CompartmentName(name, self.name)
        new = Guard.__new__(Guard)  # the environment's settings are for whole guards
        slots = max_concurrent_calls or share(self._gate.core.shared_slots)
        new._build(name, slots, self.mode, {**self._inherited(), **options})
        new._parent = self
        new._share = slots if automatic else max_concurrent_calls  # None follows the guard's number
        own = new._gate
        gate = CompartmentGate(
            name, own.core, clock=own.clock, max_wait=own.max_wait, listeners=own.listeners
        )
        new.call_settings = CallSettings(
            new, name, (gate, *self._parent_gates(gate)), new.call_settings.policy, new._timeout
        )
        gate.errors = self._gate.errors
        gate.join(self._gate.report)
        new.call_settings.has_own_timeout = "timeout" in options or self.call_settings.has_own_timeout
        attach(new, self._attachment)
        with self._gate.lock:  # two threads may make the same compartment
            known = self._find_compartment(name)
            if known is None:
                self._compartments += (new,)
        if new.mode != self.mode:  # it was changed meanwhile, or the environment says off
            switch(new, self.mode)
        if known is None and self._auto_compartments is not None:
            self._auto_compartments.add(gate, automatic=automatic)
        return known or new

    def _parent_gates(self, gate: LockedGate) -> tuple[LockedGate, ...]:
        """The gates of this guard for the calls of a compartment, whose own gate is ``gate``."""
        own, *further = self.call_settings.gates
        return (own.workload_gate(gate, judged=self.call_settings.policy is not None), *further)

    def _find_compartment(self, name: str) -> Guard | None:
        return next((compartment for compartment in self._compartments if compartment.name == name), None)

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
        """The compartments, oldest first."""
        return self._compartments

    # --- attached to a pool --------------------------------------------------------------------

    def warm_up(self, timeout: float = 30.0) -> int:
        """Opens connections until ``minimum_idle`` are idle, for the start of a service.

        Args:
            timeout: Maximum seconds for all of them.

        Returns:
            The number of connections that were opened.

        Raises:
            WarmUpError: One could not be opened. Those that were opened stay.
            ConfigurationError: The guard is not attached to a pool, or the pool's connections belong to an
                event loop: await `warm_up_async`.
        """
        return self._find_upkeep("warm_up", timeout).warm_up(timeout)

    async def warm_up_async(self, timeout: float = 30.0) -> int:  # noqa: ASYNC109 - its twin's parameter
        """Opens connections as `warm_up` does, without blocking the event loop."""
        return await self._find_upkeep("warm_up_async", timeout).warm_up_async(timeout)

    def _find_upkeep(self, where: str, timeout: float) -> Upkeep:
        faults = Faults(f"guard {self.name!r}: {where}")
        faults.seconds("timeout", timeout)
        faults.raise_if_any()
        upkeep = None if self._attachment is None or self._parent is not None else self._attachment.upkeep
        if upkeep is None:
            raise ConfigurationError(
                f"guard {self.name!r} has no pool to warm up: call {where}() on the guard that protect() "
                "returned for an engine or a Redis client"
            )
        return upkeep

    def detach(self) -> None:
        """Undoes `protect` and restores the target, including its checked-out connections.

        Raises:
            ConfigurationError: This guard is not attached, or is a compartment.
        """
        if self._attachment is None or self._parent is not None:
            raise ConfigurationError(f"guard {self.name!r} is not attached to anything")
        self._attachment.detach()
        attach(self, None)


def snapshot_of(guard: Guard, pool: PoolSnapshot | None = None) -> GuardSnapshot:
    """The figures of a guard now. Those of its pool, which take long to read, are included only if given.

    Args:
        guard: The guard.
        pool: The figures of its pool, or None.
    """
    gate = guard._gate
    if not gate.core.enforces:
        gate.step(gate.core.advance_model)  # otherwise refusals that are due in the model would be missing
    with gate.lock:
        seen = take(gate.clock(), guard.name, gate.core, gate.report, pool)
    by_parent = sum(above.refused for above in guard.call_settings.gates[1:])
    seen = replace(seen, rejected_by_parent=by_parent) if by_parent else seen
    return replace(seen, orders=guard._orders) if guard._orders else seen


def guard_of_settings(name: str, slots: int, **settings: Any) -> Guard:
    """Makes a guard of these settings alone; it ignores the environment.

    Args:
        name: Its name.
        slots: Its slots.
        **settings: All others that a compartment would inherit.
    """
    guard = Guard.__new__(Guard)
    guard._build(name, slots, "enforce", settings)
    return guard


def attachment_of(guard: Guard) -> Attachment | None:
    """What a guard or its parent is attached to; None for nothing."""
    return guard._attachment


def lease_of(guard: Guard) -> Lease | None:
    """Returns the lease that limits a guard, and not only its parent; None without a fleet's budget."""
    if guard._parent is not None:
        return None
    if guard._attachment is not None and guard._attachment.upkeep is not None:
        return guard._attachment.upkeep.lease
    member = guard._gate.fleet_member
    return None if member is None else member.lease


def note_orders(guard: Guard, orders: dict[str, dict[str, str]]) -> None:
    """Notes the orders of a fleet that a guard knows, for its snapshot."""
    guard._orders = orders


def recent_events(guard: Guard) -> list[dict[str, Any]]:
    """Returns the last events of a guard and its compartments, the oldest first."""
    return list(guard._gate.report.recent)


def set_slots(guard: Guard, slots: int, *, closes: bool = True) -> None:
    """Changes the number of slots of a guard and of its compartments of the default size; may be 0.

    Args:
        guard: The guard.
        slots: The number.
        closes: False to leave the idle connections above it to others.
    """
    guard._gate.step(guard._gate.core.resize, slots)
    upkeep = None if guard._attachment is None or guard._parent is not None else guard._attachment.upkeep
    if closes and upkeep is not None:
        upkeep.resized()
    _share_out(ref(guard))


def _share_out(whole: ref[Guard]) -> None:
    """Fits the compartments of the default size to the slots that they share."""
    guard = whole()
    if guard is None:
        return
    slots = guard._gate.core.shared_slots
    for compartment in guard.compartments:
        if compartment._share is None:
            set_slots(compartment, share(slots))
    if guard._auto_compartments is not None:
        guard._auto_compartments.resize(slots)


def set_state(guard: Guard, transition: str) -> None:
    """Makes a manual transition of a guard's circuit, and those of the compartments that follow it."""
    guard._gate.step(guard._gate.core.set_state, transition)
    if guard._auto_compartments is not None:
        guard._auto_compartments.set_state(transition)
    elif not guard._may_have_compartments and transition != "forced_open":
        # One for each server; a guard that refuses all calls leaves their circuits as they are.
        for compartment in guard._compartments:
            set_state(compartment, transition)
    if guard._parent is not None and guard._parent._auto_compartments is not None:
        guard._parent._auto_compartments.divide()  # otherwise its calls would not pass its gate


def switch(guard: Guard, mode: Mode) -> None:
    """Changes the mode of a guard and all its compartments."""
    gate = guard._gate
    gate.step(gate.core.set_mode, mode)
    if mode == "shadow":
        gate.report.sums.begin(gate.core.admitted)
    if gate.core.adaptive is not None:
        _share_out(ref(guard))
    for compartment in guard._compartments:
        switch(compartment, mode)


def attach(guard: Guard, attachment: Attachment | None) -> None:
    """Attaches a guard and its compartments to a pool; None detaches them."""
    guard._attachment = attachment
    if attachment is not None and guard._parent is None:
        _log_protection(guard)
    guard.call_settings.attach(guard._timeout, attached=attachment is not None)
    gate = guard.call_settings.gates[0]
    gate.step(gate.core.watch_for_stalls, on=attachment is not None)
    if attachment is None:
        gate.step(lambda _: gate.core.drop_calls_and_waiters())
    for compartment in guard.compartments:
        attach(compartment, attachment)


_DOES: dict[Mode, str] = {
    "enforce": "protects",
    "shadow": "is in shadow and only counts what it would refuse and stop",
    "off": "is off",
}


def _log_protection(guard: Guard) -> None:
    slots, policy, timeout = guard._gate.core.bulkhead.limit, guard.call_settings.policy, guard._timeout
    circuit = "no circuit"
    if policy is not None:
        circuit = (
            f"the circuit opens at {policy.failure_rate_threshold:.0%} failed or "
            f"{policy.slow_call_rate_threshold:.0%} slower than {policy.slow_call_duration_threshold:g} s"
        )
    limit = "no timeout" if timeout is None else f"timeout {timeout:g} s"
    extra = fields_of(guard.name)
    does = _DOES[guard.mode]
    log.info("guard %r %s: %d slots, %s, %s", guard.name, does, slots, limit, circuit, extra=extra)
    if timeout is not None and timeout >= LONG_TIMEOUT:
        words = "guard %r: its timeout is %g seconds; are these milliseconds?"
        log.warning(words, guard.name, timeout, extra=extra)
