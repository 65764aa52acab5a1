"""What users see, pinned: never run, only type-checked (mypy --strict)."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_type

from guardrails import BreakerPolicy, Guard, deadline, guarded, remaining

db = Guard("db", max_concurrent_calls=3, breaker=BreakerPolicy(failure_rate_threshold=0.4))


@guarded(db)
def load(number: int, *, fresh: bool = False) -> str:
    """A function keeps its signature."""
    return f"{number}{fresh}"


@guarded(db, timeout=0.5)
async def load_async(number: int) -> list[str]:
    """A coroutine function stays one."""
    return [str(number)]


class Repository:
    """Methods are functions too."""

    @guarded(db)
    def one(self, number: int) -> bytes:
        """A method keeps its self."""
        return bytes(number)


async def use() -> None:
    """Every form gives back the type of what it wraps."""
    assert_type(load(1, fresh=True), str)
    assert_type(await load_async(1), list[str])
    assert_type(Repository().one(1), bytes)
    assert_type(db.run(load, 1), str)
    assert_type(await db.run_async(load_async, 1), list[str])
    with db.call(timeout=1.0) as call:
        assert_type(call.remaining(), float | None)
    async with db.call() as call:
        assert_type(call.remaining(), float | None)
    with deadline(0.3):
        assert_type(remaining(), float | None)
    part: Guard = db.compartment("part")
    assert_type(part.snapshot().failure_rate, float | None)


def wrong() -> None:
    """What must not type-check does not."""
    load("1")  # type: ignore[arg-type]
    db.run(load, "1")  # type: ignore[arg-type]
    keep: Callable[[int], int] = load  # type: ignore[assignment]
    del keep
