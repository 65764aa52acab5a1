"""A story told in the same words whatever switches Python was started with. It asserts nothing."""

from __future__ import annotations

import asyncio
import pathlib
import sys
import threading

import guardrails
from guardrails import (
    Bulkhead,
    CircuitBreaker,
    ConfigurationError,
    Guard,
    RejectedError,
    deadline,
    guarded,
    retrying,
)
from guardrails.testing.clock import FakeClock


class Boom(Exception):
    """The dependency's fault."""


def boom():
    raise Boom


def end_of(fn, *args):
    """What a call returns, or the name of what it raises."""
    try:
        return fn(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def in_a_loop(fn, *args):
    """Runs a coroutine function; a busy machine is no reason for a debugging loop to say a word."""

    async def main():
        asyncio.get_running_loop().slow_callback_duration = 600
        return await fn(*args)

    return asyncio.run(main())


def circuit(say):
    """Closed, open, half-open, closed."""
    clock = FakeClock()
    policy = guardrails.BreakerPolicy(minimum_number_of_calls=4, open_jitter=0)
    guard = Guard("db", max_concurrent_calls=3, breaker=policy, clock=clock)
    for fn in (int, int, boom, boom, int):
        say(end_of(guard.run, fn), guard.state)
    clock.advance(2)
    for _ in range(3):
        say(in_a_loop(guard.run_async, asyncio.sleep, 0, "slept"), guard.state)
    late = guard.call()
    late.__enter__()
    clock.advance(10)
    guard.reset()
    late.__exit__(None, None, None)
    late.__exit__(None, None, None)
    say(guard.snapshot())


def slots(say):
    """Two inside, one in the queue, one refused; a call used twice."""
    guard = Guard("db", max_concurrent_calls=2, max_wait_duration=60, max_waiting=1)
    served = []
    with guard.call() as call, guard.call():
        thread = threading.Thread(target=guard.run, args=(served.append, "served"))
        thread.start()
        while not guard.snapshot().waiting:
            pass
        say(end_of(guard.run, int), end_of(call.__enter__), repr(guard))
    thread.join()
    say(served, repr(guard), end_of(Bulkhead("db", 1).run, boom))


def around(say):
    """Deadlines, retries, fallbacks, the drop-in, wrong settings."""
    guard = Guard("db", max_concurrent_calls=2)
    with deadline(0):
        say(end_of(guard.run, int))

    @guarded(guard, retry=retrying(attempts=3, wait=lambda _: 0), fallback=lambda error: type(error).__name__)
    def fail():
        """Its documentation."""
        raise Boom

    guard.force_open()
    say(end_of(fail), fail.__name__)
    breaker = CircuitBreaker(fail_max=2, reset_timeout=60, throw_new_error_on_trip=False)
    say([end_of(breaker.call, boom) for _ in range(3)], breaker.current_state)
    say(end_of(lambda: Guard("db", max_concurrent_calls=0, timeout=-1)))
    say(issubclass(ConfigurationError, ValueError), issubclass(RejectedError, Exception))


if __name__ == "__main__":
    print(pathlib.Path(guardrails.__file__).parents[1] == pathlib.Path(sys.argv[1]))
    for part in (circuit, slots, around):
        part(print)
