"""The rest of the surface, row by row: settings, figures, steering, errors, events, targets, edges."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal, assert_type

import pybreaker
import redis
import redis.asyncio
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import ASGIApp

from guardrails import (
    Adaptive,
    BreakerPolicy,
    Bulkhead,
    BulkheadFullError,
    CallTimeoutError,
    CircuitBreaker,
    CircuitOpenError,
    CommitUnknownError,
    ConfigurationError,
    DeadlineSpentError,
    Guard,
    GuardrailsError,
    GuardSnapshot,
    RejectedError,
    RetryBudget,
    ShedError,
    deadline,
    guarded,
    protect,
    retrying,
)
from guardrails.errors import Reason
from guardrails.events import CallFinished, CallRejected, Event, StateChanged
from guardrails.fleet import Budget, Fleet
from guardrails.integrations import asgi, wsgi
from guardrails.integrations.redis import guard_client
from guardrails.integrations.sqlalchemy import guard_engine
from guardrails.integrations.starlette import status_app
from guardrails.testing.clock import FakeClock

# --- settings ------------------------------------------------------------------------------------

policy = BreakerPolicy(
    failure_rate_threshold=1,
    sliding_window_type="count",
    sliding_window_size=100,
    consecutive_failures=5,
    is_failure=lambda error: not isinstance(error, LookupError),
    is_failure_result=lambda result: result is None,
)
Guard("adaptive", max_concurrent_calls=Adaptive(minimum=2, maximum=20, mode="shadow"))
Adaptive(mode="off")  # type: ignore[arg-type]
BreakerPolicy(sliding_window_type="calls")  # type: ignore[arg-type]
BreakerPolicy(minimum_number_of_calls=2.5)  # type: ignore[arg-type]
BreakerPolicy(open_jitter=Decimal("0.1"))  # type: ignore[arg-type]


def hear(event: Event) -> None:
    """A listener of everything."""
    if isinstance(event, StateChanged):
        assert_type(event.retry_after, float | None)
    elif isinstance(event, CallRejected):
        assert_type(event.reason, Reason)
    elif isinstance(event, CallFinished):
        assert_type(event.duration, float)


guard = Guard(
    "api",
    max_concurrent_calls=4,
    max_wait_duration=0,
    max_waiting=0,
    timeout=None,
    breaker=None,
    listeners=[hear],
    clock=FakeClock(),
    random=lambda: 0.5,
)
Guard("api", max_concurrent_calls="4")  # type: ignore[arg-type]
Guard("api", max_concurrent_calls=4, listeners=[len])  # type: ignore[list-item]
Guard("api")  # type: ignore[call-arg]

# --- what can be guarded -------------------------------------------------------------------------


class Shop:
    """Static and class methods keep their kind, written below the guard or above it."""

    @staticmethod
    @guarded(guard)
    def price(number: int) -> float:
        """A static method."""
        return float(number)

    @classmethod
    @guarded(guard, criticality="CRITICAL_PLUS")
    def open(cls, name: str) -> Shop:
        """A class method."""
        return cls()

    @guarded(guard, timeout=0.1, criticality="SHEDDABLE")
    async def stock(self, number: int) -> dict[int, int]:
        """An async method."""
        return {number: 1}


class Fetch:
    """An object that is called."""

    async def __call__(self, path: str) -> bytes:
        """Asynchronously."""
        return path.encode()


def add(one: int, other: int) -> int:
    """To be called with one argument already given."""
    return one + other


fetch = guarded(guard)(Fetch())
add_one = guarded(guard)(functools.partial(add, 1))


async def use_what_is_guarded() -> None:
    """Each form gives back the type of what it wraps."""
    assert_type(Shop.price(1), float)
    assert_type(Shop.open("a"), Shop)
    assert_type(await Shop().stock(1), dict[int, int])
    assert_type(await fetch("/"), bytes)
    assert_type(add_one(2), int)
    assert_type(guard.run(add, 1, other=2), int)
    assert_type(await guard.run_async(Fetch(), "/"), bytes)
    guarded(guard, criticality="URGENT")  # type: ignore[call-overload]
    guarded(guard, timeout="5")  # type: ignore[call-overload]
    await guard.run_async(add, 1, 2)  # type: ignore[arg-type]


# --- looking and steering ------------------------------------------------------------------------

State = Literal["closed", "open", "half_open", "forced_open", "disabled", "metrics_only"]


def look() -> None:
    """Figures are plain numbers."""
    now = guard.snapshot()
    assert_type(now, GuardSnapshot)
    state: State = guard.state
    assert_type(now.state, State)
    assert_type((now.name, guard.name), tuple[str, str])
    assert_type((now.calls, now.failures, now.slow_calls), tuple[int, int, int])
    assert_type((now.in_use, now.max_concurrent_calls, now.waiting), tuple[int, int, int])
    assert_type((now.admitted, now.succeeded, now.failed, now.slow), tuple[int, int, int, int])
    assert_type((now.abandoned, now.late_results), tuple[int, int])
    assert_type((now.slow_call_rate, now.retry_after), tuple[float | None, float | None])
    assert_type(now.oldest_in_flight, float | None)
    assert_type(now.rejected, Mapping[str, int])
    assert_type(guard.timeout, float | None)
    now.calls = 0  # type: ignore[misc]
    guard.state = "open"  # type: ignore[misc]
    del state


def steer() -> None:
    """By hand."""
    for move in (guard.force_open, guard.disable, guard.metrics_only, guard.reset, guard.detach):
        move()
    guard.resize(5)
    guard.resize("5")  # type: ignore[arg-type]
    part = guard.compartment("reports", max_concurrent_calls=2, timeout=60)
    assert_type(part, Guard)
    assert_type(guard.compartments, tuple[Guard, ...])


# --- alone ---------------------------------------------------------------------------------------


class Noisy(pybreaker.CircuitBreakerListener):
    """pybreaker's listener objects."""


breaker = CircuitBreaker(
    fail_max=3,
    reset_timeout=1,
    success_threshold=2,
    exclude=[LookupError],
    listeners=[Noisy(), hear],
    state_storage=pybreaker.CircuitMemoryStorage("closed"),
    name="orders",
    throw_new_error_on_trip=False,
    clock=time.monotonic,
)
as_pybreaker: pybreaker.CircuitBreaker = breaker
bulkhead: Guard = Bulkhead("reports", 3, 0.5, 10, listeners=[hear])
Bulkhead("reports", 3, timeout=1)  # type: ignore[arg-type]


def use_them_alone() -> None:
    """The breaker's figures, the bulkhead's, the budget's."""
    assert_type(breaker.fail_max, int)
    assert_type(breaker.reset_timeout, float)
    assert_type(breaker.open(), bool)
    breaker.half_open()
    breaker.close()
    with bulkhead.call():
        assert_type(bulkhead.run(add, 1, 2), int)
    figures = RetryBudget(ratio=0.2, minimum_per_second=5).snapshot()
    assert_type((figures.calls, figures.retries, figures.available), tuple[int, int, int])
    retrying(attempts="3")  # type: ignore[arg-type]
    with deadline("5"):  # type: ignore[arg-type]
        pass


# --- errors --------------------------------------------------------------------------------------


def tell(error: GuardrailsError) -> str:
    """Each kind carries what its reader needs."""
    if isinstance(error, CircuitOpenError):
        also: pybreaker.CircuitBreakerError = error
        return f"{also} {error.retry_after}"
    if isinstance(error, BulkheadFullError | DeadlineSpentError | ShedError):
        refused: RejectedError = error
        return f"{refused.guard} {refused.reason}"
    if isinstance(error, CommitUnknownError):
        unknown: CallTimeoutError = error
        return f"{unknown.guard} {unknown.timeout}"
    if isinstance(error, CallTimeoutError):
        late: TimeoutError = error
        return str(late)
    if isinstance(error, ConfigurationError):
        wrong: ValueError = error
        return str(wrong)
    return ""


def sort(error: RejectedError) -> float | None:
    """The reasons are a closed list."""
    assert_type(
        error.reason, Literal["circuit_open", "bulkhead_full", "queue_timeout", "deadline_spent", "shed"]
    )
    return error.retry_after


# --- targets and edges ---------------------------------------------------------------------------


def protect_them(
    engine: sqlalchemy.Engine,
    async_engine: AsyncEngine,
    client: redis.Redis,
    async_client: redis.asyncio.Redis,
) -> None:
    """Engines and clients; their own types are untouched."""
    assert_type(protect(engine), Guard)
    assert_type(protect(async_engine, name="orders", max_concurrent_calls=5), Guard)
    assert_type(protect(client, timeout=0.2), Guard)
    assert_type(protect(async_client, breaker=policy), Guard)
    assert_type(guard_engine(engine, compartments="auto"), Guard)
    assert_type(guard_client(client), Guard)
    protect(engine, name=5)  # type: ignore[arg-type]


async def allowed(request: Request) -> bool:
    """Who may steer."""
    return request.headers.get("x-token") == "secret"


def mount(app: ASGIApp) -> ASGIApp:
    """The ways the middleware is put in, and the status pages."""
    starlette = Starlette()
    starlette.add_middleware(
        asgi.GuardrailsMiddleware,
        guards=[guard],
        requires={"/orders": [guard]},
        exempt=("/livez",),
        request_timeout=2,
        deadline_headers=("grpc-timeout",),
        max_in_flight=100,
    )
    pages = status_app([guard], auth=allowed, stuck_after=10)
    starlette.mount("/status", pages)
    pages.drain()
    wsgi.GuardrailsMiddleware(wsgi.status_app([guard]), guards=[guard])
    return asgi.GuardrailsMiddleware(app)


# --- fleets ---------------------------------------------------------------------------------------

fleet = Fleet("redis://cache:6379/0", name="shop", worker_id="web-1")
budget = fleet.budget("orders-db", connections=80, minimum=2)
assert_type(budget, Budget)
assert_type(guard_engine(sqlalchemy.create_engine("sqlite://"), fleet=budget), Guard)
assert_type(guard_client(redis.Redis(), fleet=fleet.verdict("cache")), Guard)
fleet.budget("orders-db", connections=80, most=2)  # type: ignore[call-arg]
