"""A dependency falls ill, its circuit opens, and one probe after the wait it closes again.

python examples/circuit_opens.py
"""

from __future__ import annotations

import time

from guardrails import BreakerPolicy, CircuitOpenError, Guard
from guardrails.events import Event, StateChanged

ill = True


def ask_search(words: str) -> str:
    """Stands for a call to something that can fail."""
    if ill:
        raise ConnectionError("search is down")
    return f"results for {words}"


def tell(event: Event) -> None:
    """Prints transitions; a listener is any callable."""
    if isinstance(event, StateChanged):
        print(f"  {event.guard}: {event.old} -> {event.new} ({event.cause})")


search = Guard(
    "search",
    max_concurrent_calls=20,
    timeout=0.5,
    breaker=BreakerPolicy(
        minimum_number_of_calls=5,
        wait_duration_in_open_state=0.3,
        open_jitter=0,
        permitted_calls_in_half_open_state=1,
    ),
    listeners=[tell],
)


def attempt() -> str:
    """One call as an application would make it."""
    try:
        return search.run(ask_search, "guard rails")
    except CircuitOpenError as refused:
        return f"refused at once; try again in {refused.retry_after:.1f} s"
    except ConnectionError as error:
        return f"failed: {error}"


for _ in range(7):
    print(attempt())
ill = False
time.sleep(0.35)
print(attempt())
print(search)
