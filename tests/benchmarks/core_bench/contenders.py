"""Who takes part, ours and the peers, each with the settings its own documentation starts from.

Knows how each library is told what to do; not what is measured. A peer that is not installed is left out.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from importlib import import_module
from pkgutil import resolve_name
from typing import Any

from guardrails import BreakerPolicy, Bulkhead, CircuitBreaker, Guard, guarded

NEVER = 10**9
"""A number of failures that no run reaches: the circuit stays closed while calls raise."""

AN_HOUR = 3600
"""Longer than any run: a circuit that opened stays open."""

SLOTS = 100

Ways = Mapping[tuple[str, str], Callable[..., Any]]
"""By ``(flavour, form)``: the decorator, the ``run`` function, or what makes the context manager."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A library, or a part of ours.

    Attributes:
        name: Its row in the tables.
        distribution: Where its version comes from.
        make: A fresh instance for calls that end ``closed``, ``raising`` or ``rejected``.
        ways: How an instance is used.
        refusal: Where the error is found that it raises when it refuses; None if it never does.
    """

    name: str
    distribution: str
    make: Callable[[str], Any]
    ways: Callable[[Any], Ways]
    refusal: str | None

    @property
    def is_installed(self) -> bool:
        """Whether its distribution is there."""
        try:
            importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True

    @property
    def is_ours(self) -> bool:
        """Whether it is of this project."""
        return self.distribution == "guardrails-db"

    def refusal_class(self) -> type[Exception]:
        """The class of ``refusal``."""
        return resolve_name(self.refusal)


def all_ways(decorate, run, run_async, block) -> Ways:
    """For those who offer every form in both flavours."""
    return {
        ("sync", "decorator"): decorate,
        ("sync", "run"): run,
        ("sync", "with"): block,
        ("async", "decorator"): decorate,
        ("async", "run"): run_async,
        ("async", "with"): block,
    }


def decorator_only(decorate) -> Ways:
    """For those who offer nothing else, and for forms that would not refuse."""
    return {("sync", "decorator"): decorate, ("async", "decorator"): decorate}


# --- the floor --------------------------------------------------------------------------------------


def empty_wrapper(_end):
    """What any decorator costs that does nothing at all."""

    def decorate(fn):
        if fn.__name__.endswith("_async"):

            @functools.wraps(fn)
            async def wrapper_async(*args, **kwargs):
                return await fn(*args, **kwargs)

            return wrapper_async

        @functools.wraps(fn)
        def wrapper(*args, **kwargs):
            return fn(*args, **kwargs)

        return wrapper

    return decorate


# --- ours -------------------------------------------------------------------------------------------

OUR_CHANGES = {
    "closed": {},
    "raising": {"minimum_number_of_calls": NEVER},
    "rejected": {"wait_duration_in_open_state": AN_HOUR, "max_wait_duration_in_open_state": AN_HOUR},
}
"""What differs from the default policy, so that calls end as they should."""


def whole_guard(end, **policy):
    """Circuit, slots, in-flight ages and a timeout: what ``Guard(name, max_concurrent_calls=...)`` is."""
    return Guard("bench", max_concurrent_calls=SLOTS, breaker=BreakerPolicy(**OUR_CHANGES[end], **policy))


def guard_without_timeout(end):
    """The same with ``timeout=None``."""
    policy = BreakerPolicy(**OUR_CHANGES[end])
    return Guard("bench", max_concurrent_calls=SLOTS, timeout=None, breaker=policy)


def our_bulkhead(end):
    """Slots alone; it refuses because its only one is taken, by a call that never ends."""
    if end != "rejected":
        return Bulkhead("bench", SLOTS)
    bulkhead = Bulkhead("bench", 1)
    copy_context().run(bulkhead.call().__enter__)  # its scope must not be around the calls that are timed
    return bulkhead


def guard_ways(guard):
    """All ways into a guard."""
    return all_ways(guarded(guard), guard.run, guard.run_async, guard.call)


def our_circuit_breaker(end):
    """The pybreaker drop-in."""
    return CircuitBreaker(fail_max=NEVER if end == "raising" else 5, reset_timeout=AN_HOUR, name="bench")


def circuit_breaker_ways(breaker):
    """All ways into the drop-in."""
    return all_ways(breaker, breaker.call, breaker.acall, breaker.calling)


# --- the peers --------------------------------------------------------------------------------------


def pybreaker(end):
    """Its defaults: failures in a row."""
    library = import_module("pybreaker")
    return library.CircuitBreaker(fail_max=NEVER if end == "raising" else 5, reset_timeout=AN_HOUR)


def pybreaker_ways(breaker):
    """It takes a coroutine object for a success, and so has no part in the asynchronous cases."""
    return {
        ("sync", "decorator"): breaker,
        ("sync", "run"): breaker.call,
        ("sync", "with"): breaker.calling,
    }


def circuitbreaker(end):
    """Failures in a row. Its ``with`` and ``call`` do not look at the circuit: only its decorator refuses."""
    return import_module("circuitbreaker").CircuitBreaker(
        failure_threshold=NEVER if end == "raising" else 5, recovery_timeout=AN_HOUR, name="bench"
    )


def nopanic(end, **options):
    """Its defaults: a failure rate, no slow calls, so that it reads no clock before the call."""
    changes = {"min_calls": NEVER} if end == "raising" else {}
    return import_module("nopanic").CircuitBreaker(reset_timeout=AN_HOUR, **changes, **options)


def nopanic_slow_calls(end):
    """With the slow-call rate as well, which ours has by default."""
    return nopanic(end, slow_call_duration=1.0, slow_call_threshold=0.5)


def nopanic_both(end):
    """Breaker and bulkhead."""
    library = import_module("nopanic")
    return library.compose(nopanic_slow_calls(end), library.bulkhead(SLOTS, max_wait=0.05))


def nopanic_ways(policy):
    """All ways into one policy of nopanic."""
    return all_ways(policy, policy.call, policy.acall, policy.guard)


def interlock(end, **options):
    """Its defaults: failure and slow-call rate of the last 100 calls."""
    library = import_module("interlock")
    changes = {"minimum_number_of_calls": NEVER} if end == "raising" else {}
    clock = {"clock": options.pop("clock")} if "clock" in options else {}
    config = library.Config(wait_duration_in_open=AN_HOUR, **changes, **options)
    return library.CircuitBreaker(name="bench", config=config, **clock)


def interlock_both(end):
    """Breaker and bulkhead."""
    builder = import_module("interlock").Pipeline.builder()
    return builder.circuit_breaker(interlock(end)).bulkhead(max_concurrent=SLOTS, max_wait=0.05).build()


def interlock_ways(breaker):
    """``call_sync`` and ``call_async`` are its fastest; a lambda hands out the breaker for ``with``."""
    return all_ways(breaker, breaker.call_sync, breaker.call_async, lambda: breaker)


def pyresilience(end, **options):
    """Failures in a row. Each function it decorates has a breaker of its own."""
    library = import_module("pyresilience")
    policy = library.CircuitBreakerConfig(
        failure_threshold=NEVER if end == "raising" else 5, recovery_timeout=AN_HOUR, **options
    )
    return library.resilient(circuit_breaker=policy)


def pyresilience_both(end):
    """Breaker and bulkhead."""
    library = import_module("pyresilience")
    return library.resilient(
        circuit_breaker=library.CircuitBreakerConfig(
            failure_threshold=NEVER if end == "raising" else 5, recovery_timeout=AN_HOUR
        ),
        bulkhead=library.BulkheadConfig(max_concurrent=SLOTS, max_wait=0.05),
    )


CONTENDERS = (
    Contender("an empty wrapper", "guardrails-db", empty_wrapper, decorator_only, None),
    Contender("Guard", "guardrails-db", whole_guard, guard_ways, "guardrails:CircuitOpenError"),
    Contender(
        "Guard, no timeout", "guardrails-db", guard_without_timeout, guard_ways, "guardrails:CircuitOpenError"
    ),
    Contender(
        "CircuitBreaker",
        "guardrails-db",
        our_circuit_breaker,
        circuit_breaker_ways,
        "guardrails:CircuitOpenError",
    ),
    Contender("Bulkhead", "guardrails-db", our_bulkhead, guard_ways, "guardrails:BulkheadFullError"),
    Contender("pybreaker", "pybreaker", pybreaker, pybreaker_ways, "pybreaker:CircuitBreakerError"),
    Contender(
        "circuitbreaker",
        "circuitbreaker",
        circuitbreaker,
        decorator_only,
        "circuitbreaker:CircuitBreakerError",
    ),
    Contender("nopanic", "nopanic", nopanic, nopanic_ways, "nopanic:CircuitOpen"),
    Contender("nopanic, slow calls", "nopanic", nopanic_slow_calls, nopanic_ways, "nopanic:CircuitOpen"),
    Contender("nopanic + bulkhead", "nopanic", nopanic_both, decorator_only, "nopanic:CircuitOpen"),
    Contender("interlock-cb", "interlock-cb", interlock, interlock_ways, "interlock:CircuitOpenError"),
    Contender(
        "interlock-cb + bulkhead",
        "interlock-cb",
        interlock_both,
        decorator_only,
        "interlock:CircuitOpenError",
    ),
    Contender("pyresilience", "pyresilience", pyresilience, decorator_only, "pyresilience:CircuitOpenError"),
    Contender(
        "pyresilience + bulkhead",
        "pyresilience",
        pyresilience_both,
        decorator_only,
        "pyresilience:CircuitOpenError",
    ),
)


def installed() -> list[Contender]:
    """Those that can take part here."""
    return [contender for contender in CONTENDERS if contender.is_installed]


def versions() -> dict[str, str]:
    """The version of each distribution that takes part."""
    return {each.distribution: importlib.metadata.version(each.distribution) for each in installed()}
