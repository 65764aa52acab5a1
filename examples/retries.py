"""A dependency stumbles: one call is tried again, the budget stops a storm, and the fallback answers.

python examples/retries.py
"""

from __future__ import annotations

from guardrails import Guard, RetryBudget, deadline, guarded, retrying

broken: list[str] = []
attempts = 0


def ask_prices(article: int) -> float:
    """Stands for a call to something that can fail; says how often it was asked."""
    global attempts  # noqa: PLW0603 - a counter for the printout
    attempts += 1
    if broken:
        raise ConnectionError(broken.pop())
    return 9.5 * article


prices = Guard("prices", max_concurrent_calls=20, timeout=0.5)
budget = RetryBudget(ratio=0.1, minimum_per_second=0.2)
again = retrying(attempts=3, on=ConnectionError, budget=budget)


@guarded(prices, retry=again, fallback=lambda error: f"no price today ({type(error).__name__})")
def price_of(article: int) -> float:
    """Both decorators of a call: tried again, then answered for."""
    return ask_prices(article)


def tell(what: str) -> None:
    """Makes one call and prints what came of it."""
    global attempts  # noqa: PLW0603
    attempts = 0
    print(f"{what}: {price_of(2)}, {attempts} attempts")


tell("well")
broken = ["reset by peer"]
tell("one reset")
broken = ["reset by peer"] * 30
tell("broken, the budget has one retry left")
tell("broken, the budget is empty")
with deadline(0):
    tell("no time left")
prices.force_open()
tell("circuit open")
print(budget)
