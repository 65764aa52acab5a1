"""A cache that fails open, fast: while Redis is frozen, pages are made without it.

    pip install '/path/to/the/clone[demo]'
    python examples/redis_cache.py

Starts a private Valkey, asks it for a page every 50 ms, and freezes it for two seconds in between.
"""

import time

import redis

from guardrails import BreakerPolicy, CallTimeoutError, RejectedError, protect
from guardrails.testing.servers import ValkeyServer

FREEZE, THAW, END = 1.0, 3.0, 5.0


def page(client: redis.Redis, name: str) -> str:
    """The page from the cache, or made anew where the cache cannot be asked."""
    try:
        cached = client.get(name)
    except RejectedError:
        return f"{name}, made at once: the circuit is open"
    except (CallTimeoutError, redis.RedisError):
        return f"{name}, made after waiting for the cache"
    return f"{name}, from the cache" if cached else f"{name}, made because it is new"


def main() -> None:
    with ValkeyServer.start() as server, redis.Redis(port=server.port) as client:
        client.set("home", "<html>")
        protect(
            client,
            name="cache",
            timeout=0.25,
            breaker=BreakerPolicy(consecutive_failures=3, wait_duration_in_open_state=0.5),
        )
        shown = ""
        start = time.monotonic()
        frozen = False
        while (now := time.monotonic() - start) < END:
            if frozen is not (FREEZE < now < THAW):
                frozen = not frozen
                (server.freeze if frozen else server.thaw)()
            answer = page(client, "home")
            if answer != shown:
                print(f"{now:4.1f} s  {answer}")
                shown = answer
            time.sleep(0.05)


if __name__ == "__main__":
    main()
