"""The peers, each with the settings its own documentation starts from.

They are imported when they are made, so that one that is not installed harms nobody.
"""

from __future__ import annotations

from importlib import import_module

from core_bench.contender import AN_HOUR, NEVER, SLOTS, Contender, all_ways, decorator_only, failures_to_open


def pybreaker(end):
    """Its defaults: failures in a row."""
    library = import_module("pybreaker")
    return library.CircuitBreaker(fail_max=failures_to_open(end), reset_timeout=AN_HOUR)


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
        failure_threshold=failures_to_open(end), recovery_timeout=AN_HOUR, name="bench"
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


def pyresilience(end, bulkhead=None, **options):
    """Failures in a row. Each function it decorates has a breaker of its own."""
    library = import_module("pyresilience")
    policy = library.CircuitBreakerConfig(
        failure_threshold=failures_to_open(end), recovery_timeout=AN_HOUR, **options
    )
    return library.resilient(circuit_breaker=policy, bulkhead=bulkhead)


def pyresilience_both(end):
    """Breaker and bulkhead."""
    slots = import_module("pyresilience").BulkheadConfig(max_concurrent=SLOTS, max_wait=0.05)
    return pyresilience(end, bulkhead=slots)


def purgatory(end):
    """Failures in a row; it has a factory for each flavour."""
    library = import_module("purgatory")
    settings = {"default_threshold": failures_to_open(end), "default_ttl": AN_HOUR}
    return {
        "sync": library.SyncCircuitBreakerFactory(**settings),
        "async": library.AsyncCircuitBreakerFactory(**settings),
    }


def purgatory_ways(factories):
    """Its ``with`` looks the breaker up by name each time, as its documentation does."""
    return {
        ("sync", "decorator"): factories["sync"]("bench"),
        ("async", "decorator"): factories["async"]("bench"),
        ("sync", "with"): lambda: factories["sync"].get_breaker("bench"),
    }


PEERS = (
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
    Contender("purgatory", "purgatory", purgatory, purgatory_ways, "purgatory.domain.model:OpenedState"),
)
