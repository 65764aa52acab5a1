"""A process that ends while guards are in use: nothing is said, nothing hangs, and late calls still work."""

from __future__ import annotations

import asyncio
import atexit
import builtins
import os
import threading
import time

from guardrails import CircuitBreaker, Guard, deadline

LONG = 600

busy = Guard("busy", max_concurrent_calls=2, max_wait_duration=LONG, max_waiting=10, timeout=LONG)
idle = Guard("idle", max_concurrent_calls=2)
breaker = CircuitBreaker()


class Late:
    """Something that is collected after the handlers of atexit, when the interpreter clears up."""

    def __del__(self, idle=idle, breaker=breaker, deadline=deadline, write=os.write):
        with deadline(5), idle.call():
            breaker.call(int)
        write(1, f"collected: {idle!r}\n".encode())


async def crowd():
    """Calls whose loop is never closed: one inside on a guard of its own, others in the queue."""
    asyncio.get_running_loop().slow_callback_duration = LONG  # a busy machine is not what is looked for
    own = Guard("own", max_concurrent_calls=1, timeout=LONG)
    await asyncio.gather(
        own.run_async(asyncio.sleep, LONG), *[busy.run_async(asyncio.sleep, LONG) for _ in range(3)]
    )


def refused_at_exit():
    """At exit the queue is still a queue: the wait is bounded by what the caller has left."""
    try:
        with deadline(0.05):
            busy.run(int)
    except Exception as error:
        print("at exit:", type(error).__name__, idle.run(lambda: "served"), flush=True)


def main():
    """Two daemon threads inside, two in the queue, and a loop of tasks of both kinds."""
    for target in [lambda: busy.run(time.sleep, LONG)] * 2:
        threading.Thread(target=target, daemon=True).start()
    while busy.snapshot().in_use < 2:
        time.sleep(0.005)
    for target in [lambda: busy.run(int), lambda: busy.run(int), lambda: asyncio.run(crowd())]:
        threading.Thread(target=target, daemon=True).start()
    while busy.snapshot().waiting < 5:
        time.sleep(0.005)
    atexit.register(refused_at_exit)
    next(never_closed)
    builtins.late = Late()
    print("main is over", flush=True)


def suspended():
    """A call that nobody will ever end."""
    with idle.call():
        yield


breaker.half_open()
never_closed = suspended()

if __name__ == "__main__":
    main()
