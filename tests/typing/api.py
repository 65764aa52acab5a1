"""What users see, pinned: never run, only type-checked (mypy --strict, and pyright in strict mode)."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_type

import tenacity

from guardrails import (
    BreakerPolicy,
    Bulkhead,
    CircuitBreaker,
    Guard,
    RetryBudget,
    deadline,
    guarded,
    remaining,
    retrying,
)
from guardrails.integrations.asgi import requires
from guardrails.integrations.outgoing import outgoing_headers

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


breaker = CircuitBreaker(fail_max=3, reset_timeout=1.5, exclude=[LookupError, lambda error: False])


@breaker
def count(word: str) -> int:
    """pybreaker's decorator keeps the signature, which pybreaker's own does not."""
    return len(word)


@breaker()
async def count_async(word: str) -> int:
    """Also when called first, and for coroutine functions."""
    return len(word)


@guarded(Bulkhead("reports", 3))
def report(day: int) -> bytes:
    """A bulkhead guards like any guard."""
    return bytes(day)


async def use_the_single_rooms() -> None:
    """`CircuitBreaker` and `Bulkhead` alone."""
    assert_type(count("a"), int)
    assert_type(await count_async("a"), int)
    assert_type(breaker.call(count, "a"), int)
    assert_type(report(1), bytes)
    with breaker.calling():
        assert_type(breaker.current_state, str)
    count(1)  # type: ignore[arg-type]


def no_answer(error: Exception) -> None:
    """A fallback may be of another type than what it stands in for."""


async def old_answer(error: Exception) -> int:
    """And asynchronous."""
    return 1


again = retrying(attempts=3, wait=tenacity.wait_fixed(1), budget=RetryBudget(), on=(OSError, ValueError))


@guarded(db, retry=again)
def retried(number: int) -> str:
    """Retries change no type."""
    return str(number)


@guarded(db, retry=tenacity.AsyncRetrying(), fallback=no_answer)
def answered(number: int, *, fresh: bool = False) -> str:
    """The fallback's type is added; the parameters stay."""
    return f"{number}{fresh}"


@guarded(db, fallback=no_answer)
async def answered_async(number: int) -> str:
    """Also inside the coroutine."""
    return str(number)


@guarded(db, retry=tenacity.Retrying(), fallback=old_answer)
async def answered_later(number: int) -> str:
    """An async fallback's result, not its coroutine."""
    return str(number)


@guarded(db, fallback=lambda error: [])
def same_type(number: int) -> list[str]:
    """A fallback of the same type adds nothing."""
    return [str(number)]


class Answering:
    """Methods are functions here, too."""

    @guarded(db, fallback=no_answer)
    def one(self, number: int) -> bytes:
        """A method keeps its self."""
        return bytes(number)

    @guarded(db, fallback=no_answer)
    async def one_async(self, number: int) -> bytes:
        """Also async."""
        return bytes(number)


async def use_retries_and_fallbacks() -> None:
    """What they return."""
    assert_type(retried(1), str)
    assert_type(answered(1, fresh=True), str | None)
    assert_type(await answered_async(1), str | None)
    assert_type(await answered_later(1), str | int)
    assert_type(same_type(1), list[str])
    assert_type(Answering().one(1), bytes | None)
    assert_type(await Answering().one_async(1), bytes | None)
    assert_type(again(load, 1), str)
    assert_type(await again(load_async, 1), list[str])
    for attempt in again:
        with attempt:
            retried("1")  # type: ignore[arg-type]
    async for attempt in again:
        with attempt:
            answered("1")  # type: ignore[arg-type]
    guarded(db, fallback=old_answer)(load)  # type: ignore[arg-type]
    guarded(db, retry=3)(load)  # type: ignore[call-overload]


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


@requires(db)
async def endpoint(number: int) -> dict[str, int]:
    """An endpoint that says what it requires is the function it was."""
    return {"number": number}


async def use_the_edge() -> None:
    """The middleware's decorator and the headers for the next service."""
    assert_type(await endpoint(1), dict[str, int])
    assert_type(outgoing_headers("grpc-timeout"), dict[str, str])
