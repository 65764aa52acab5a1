"""Who takes part, ours and the peers, each with the settings its own documentation starts from.

Knows how each library is told what to do; not what is measured. A peer that is not installed is left out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from guardrails import (
    BreakerPolicy,
    Bulkhead,
    CircuitBreaker,
    CircuitOpenError,
    Guard,
    RejectedError,
    guarded,
)

NEVER = 10**9
"""A number of failures that no run reaches: the circuit stays closed while calls raise."""

AN_HOUR = 3600
"""Longer than any run: a circuit that opened stays open."""

SLOTS = 100


@dataclass(frozen=True, slots=True)
class Subject:
    """One instance of a contender, ready to be called.

    Attributes:
        ways: By ``(flavour, form)``: the decorator, the ``run`` function or what makes the context manager.
        refusal: What it raises when it refuses.
        held: Whatever must stay alive while it is used.
    """

    ways: Mapping[tuple[str, str], Callable[..., Any]]
    refusal: type[Exception]
    held: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Contender:
    """A library, or a part of ours.

    Attributes:
        name: Its row in the tables.
        kind: ``guard`` (circuit, slots and, ours only, timeout), ``breaker``, ``bulkhead`` or ``floor``.
        distribution: Where its version comes from.
        build: Makes a fresh `Subject` for calls that end ``closed``, ``raising`` or ``rejected``.
    """

    name: str
    kind: str
    distribution: str
    build: Callable[[str], Subject]

    def is_installed(self) -> bool:
        """Whether its distribution is there."""
        try:
            importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True


# --- ours -------------------------------------------------------------------------------------------


def of_guard(guard, refusal=CircuitOpenError, held=()):
    """All ways into a guard."""
    return Subject(
        {
            ("sync", "decorator"): guarded(guard),
            ("sync", "run"): guard.run,
            ("sync", "with"): guard.call,
            ("async", "decorator"): guarded(guard),
            ("async", "run"): guard.run_async,
            ("async", "with"): guard.call,
        },
        refusal,
        [guard, *held],
    )


def our_policy(end, **options):
    """The default policy, changed only so far that calls end as they should."""
    changes = {
        "closed": {},
        "raising": {"minimum_number_of_calls": NEVER},
        "rejected": {"wait_duration_in_open_state": AN_HOUR, "max_wait_duration_in_open_state": AN_HOUR},
    }
    return BreakerPolicy(**changes[end], **options)


def whole_guard(end):
    """Circuit, slots, in-flight ages and a timeout, as ``Guard("db", max_concurrent_calls=...)`` makes it."""
    return of_guard(Guard("bench", max_concurrent_calls=SLOTS, breaker=our_policy(end)))


def guard_without_timeout(end):
    """The same with ``timeout=None``."""
    return of_guard(Guard("bench", max_concurrent_calls=SLOTS, timeout=None, breaker=our_policy(end)))


def our_bulkhead(end):
    """Slots alone; it refuses because the last one is taken."""
    bulkhead = Bulkhead("bench", 1 if end == "rejected" else SLOTS)
    held = []
    if end == "rejected":
        holder = bulkhead.call()
        holder.__enter__()
        held.append(holder)
    return of_guard(bulkhead, RejectedError, held)


def our_circuit_breaker(end):
    """The pybreaker drop-in."""
    breaker = CircuitBreaker(fail_max=NEVER if end == "raising" else 5, reset_timeout=AN_HOUR, name="bench")
    return Subject(
        {
            ("sync", "decorator"): breaker,
            ("sync", "run"): breaker.call,
            ("sync", "with"): breaker.calling,
            ("async", "decorator"): breaker,
            ("async", "run"): breaker.acall,
            ("async", "with"): breaker.calling,
        },
        CircuitOpenError,
    )


# --- the peers --------------------------------------------------------------------------------------


def pybreaker(end):
    """It counts a coroutine object as a success, so it takes no part in the asynchronous cases."""
    library = import_module("pybreaker")
    breaker = library.CircuitBreaker(fail_max=NEVER if end == "raising" else 5, reset_timeout=AN_HOUR)
    ways = {
        ("sync", "decorator"): breaker,
        ("sync", "run"): breaker.call,
        ("sync", "with"): breaker.calling,
    }
    return Subject(ways, library.CircuitBreakerError)


def circuitbreaker(end):
    """Only its decorator refuses calls; ``with`` and ``call`` do not look at the circuit."""
    library = import_module("circuitbreaker")
    breaker = library.CircuitBreaker(
        failure_threshold=NEVER if end == "raising" else 5, recovery_timeout=AN_HOUR, name="bench"
    )
    ways = {("sync", "decorator"): breaker, ("async", "decorator"): breaker}
    return Subject(ways, library.CircuitBreakerError)


def nopanic_breaker(end, **options):
    """A nopanic breaker."""
    changes = {"min_calls": NEVER} if end == "raising" else {}
    return import_module("nopanic").CircuitBreaker(reset_timeout=AN_HOUR, **changes, **options)


def of_nopanic(policy, refusal):
    """All ways into a policy of nopanic."""
    return Subject(
        {
            ("sync", "decorator"): policy,
            ("sync", "run"): policy.call,
            ("sync", "with"): policy.guard,
            ("async", "decorator"): policy,
            ("async", "run"): policy.acall,
            ("async", "with"): policy.guard,
        },
        refusal,
    )


def nopanic(end):
    """Its defaults: no slow calls, so it reads no clock before the call."""
    return of_nopanic(nopanic_breaker(end), import_module("nopanic").CircuitOpen)


def nopanic_slow_calls(end):
    """With the slow-call rate on, as ours has it by default."""
    return of_nopanic(
        nopanic_breaker(end, slow_call_duration=1.0, slow_call_threshold=0.5),
        import_module("nopanic").CircuitOpen,
    )


def interlock_breaker(end):
    """An interlock breaker."""
    library = import_module("interlock")
    changes = {"minimum_number_of_calls": NEVER} if end == "raising" else {}
    config = library.Config(wait_duration_in_open=AN_HOUR, **changes)
    return library.CircuitBreaker(name="bench", config=config)


def interlock(end):
    """``call_sync`` and ``call_async`` are its fastest forms; a lambda hands out its context manager."""
    breaker = interlock_breaker(end)
    return Subject(
        {
            ("sync", "decorator"): breaker,
            ("sync", "run"): breaker.call_sync,
            ("sync", "with"): lambda: breaker,
            ("async", "decorator"): breaker,
            ("async", "run"): breaker.call_async,
            ("async", "with"): lambda: breaker,
        },
        import_module("interlock").CircuitOpenError,
    )


def pyresilience_breaker(end):
    """The settings of a breaker that counts failures in a row, its default."""
    return import_module("pyresilience").CircuitBreakerConfig(
        failure_threshold=NEVER if end == "raising" else 5, recovery_timeout=AN_HOUR
    )


def pyresilience(end):
    """It has a decorator only, and each decorated function has a breaker of its own."""
    library = import_module("pyresilience")
    decorate = library.resilient(circuit_breaker=pyresilience_breaker(end))
    return Subject(
        {("sync", "decorator"): decorate, ("async", "decorator"): decorate}, library.CircuitOpenError
    )


CONTENDERS = (
    Contender("Guard", "guard", "guardrails-db", whole_guard),
    Contender("Guard, no timeout", "guard", "guardrails-db", guard_without_timeout),
    Contender("CircuitBreaker", "breaker", "guardrails-db", our_circuit_breaker),
    Contender("Bulkhead", "bulkhead", "guardrails-db", our_bulkhead),
    Contender("pybreaker", "breaker", "pybreaker", pybreaker),
    Contender("circuitbreaker", "breaker", "circuitbreaker", circuitbreaker),
    Contender("nopanic", "breaker", "nopanic", nopanic),
    Contender("nopanic, slow calls", "breaker", "nopanic", nopanic_slow_calls),
    Contender("interlock-cb", "breaker", "interlock-cb", interlock),
    Contender("pyresilience", "breaker", "pyresilience", pyresilience),
)


def installed() -> list[Contender]:
    """Those that can take part here."""
    return [contender for contender in CONTENDERS if contender.is_installed()]


def versions() -> dict[str, str]:
    """The version of each distribution that takes part."""
    return {each.distribution: importlib.metadata.version(each.distribution) for each in installed()}
