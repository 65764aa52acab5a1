"""The time a caller has left: the only ambient state of the library. Knows guards only as owners.

A deadline lives in a `Scope`, carried by a context variable, so tasks and worker threads that copy
the context inherit it. When its block ends the scope is *closed*, not only reset: whoever still has
it, such as a background task, steps over it instead of keeping a dead deadline for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from guardrails._core.criticality import CRITICAL
from guardrails._runtime.request_errors import RequestErrors
from guardrails._runtime.unentered import check_entered
from guardrails._util.checks import Faults, finite
from guardrails.errors import CallTimeoutError, RejectedError

__all__ = [
    "RankScope",
    "RequestScope",
    "Scope",
    "ambient",
    "close",
    "current",
    "deadline",
    "enter",
    "note_guard_error",
    "open_scope",
    "rank_of",
    "ranked",
    "remaining",
    "swap",
    "touch",
]

S = TypeVar("S", bound="Scope")
E = TypeVar("E", bound=RejectedError | CallTimeoutError)

Clock = Callable[[], float]

ambient: ContextVar[Scope | None] = ContextVar("guardrails_scope", default=None)


class Scope:
    """One block of code that runs under a deadline or for a guard.

    Attributes:
        at: When time is up on ``clock``, the enclosing scopes included; None is never.
        owner: The guard whose timeout ``at`` is; None for a `deadline` block.
        guard: The guard this block was opened for; None for a `deadline` block.
        limit: When its own time is up, where an enclosing scope's is up sooner.
        clock: What ``at`` is measured with.
        outer: The enclosing scope.
        closed: True once the block has ended.
        request: The request this block is part of, or None.
        timed_task: The ``id`` of the asyncio task that is cancelled at ``at``; 0 for none. That task lives as
            long as the scope is open, so nobody else has its id, and a mere number keeps nothing alive.
    """

    __slots__ = ("at", "clock", "closed", "guard", "limit", "outer", "owner", "request", "timed_task")

    rank: int | None = None  # of the few scopes that say how much the block matters; the others ask outside
    at: float | None
    guard: Any
    limit: float | None
    owner: Any
    clock: Clock
    outer: Scope | None
    closed: bool
    timed_task: int
    request: RequestScope | None

    def begin(self, at: float | None, guard: Any, clock: Clock, outer: Scope | None) -> None:
        """Fills a new scope in, inside ``outer``, which is what `current` has just returned."""
        self.at = at
        self.guard = self.owner = guard
        self.clock = clock
        self.outer = outer
        self.closed = False
        self.timed_task = 0
        self.request = None if outer is None else outer.request
        self.bound_by(outer)

    def bound_by(self, outer: Scope | None) -> None:
        """Takes the enclosing scope's deadline if that is the sooner one."""
        if outer is not None and outer.at is not None:
            self.bound_at(outer.at, outer.clock, outer.owner, outer.timed_task)

    def bound_at(self, at: float, clock: Clock, owner: Any, timed_task: int = 0) -> None:
        """Takes a deadline from outside if that is the sooner one."""
        own = self.clock
        bound = at if clock is own else own() + (at - clock())
        if self.at is None or bound <= self.at:
            self.limit = self.at
            self.at = bound
            self.owner = owner
            self.timed_task = timed_task

    def clear_deadline(self) -> None:
        """Takes this scope's own limit away; an enclosing one still holds."""
        if self.at is not None:
            outer = self.outer
            self.limit = None
            self.at = None if outer is None else outer.at
            if outer is not None:
                self.owner, self.clock = outer.owner, outer.clock

    def remaining(self) -> float | None:
        """Seconds left, negative when time is up, or None without a deadline."""
        return None if self.at is None else self.at - self.clock()


class RankScope(Scope):
    """A block of code that matters more or less than what is around it.

    Attributes:
        rank: How much; see `guardrails._core.criticality`.
    """

    __slots__ = ("rank",)

    def __init__(self, rank: int, outer: Scope | None) -> None:
        self.begin(None, None, time.monotonic if outer is None else outer.clock, outer)
        self.rank = rank
        ranked.add(rank)


ranked: set[int] = set()
"""The ranks anybody ever spoke of in this process; while there are none, nobody has to look for them."""


class RequestScope(Scope):
    """The scope of one HTTP request, opened by a middleware around everything the request does.

    A middleware inside another one serves the same request: what it touched they have in common. What each of
    them has reserved is for everything inside it.

    Attributes:
        request_errors: What is known of the refusals and timeouts inside it; None while there was none.
        name: Its method and the template of its route, such as ``GET /orders/{id}``, as soon as it is known.
        touched: When each guard was first asked for something inside it, on ``clock``, by call.
        reserved: The slots taken for it that nothing inside it uses yet: by gate, the gate and the number.
    """

    __slots__ = ("name", "request_errors", "reserved", "touched")

    def __init__(self, at: float | None, clock: Clock, outer: Scope | None) -> None:
        shared = None
        if outer is None:
            # What ``begin`` does then, written out: every request pays for it, and few have a scope outside.
            self.at, self.clock, self.outer = at, clock, None
            self.guard = self.owner = None
            self.closed, self.timed_task = False, 0
        else:
            self.begin(at, None, clock, outer)
            shared = self.request
        self.request_errors: RequestErrors | None = None
        self.name: str | None = None
        self.touched: dict[Any, float] = {} if shared is None else shared.touched
        self.reserved: dict[Any, tuple[Any, int]] = {}
        self.request = self

    def reservations_at(self, core: Any) -> dict[Any, tuple[Any, int]] | None:
        """The book with the slot that the request, or an enclosing middleware, has at a gate; or None."""
        request: RequestScope | None = self
        while request is not None:
            if core in request.reserved:
                return request.reserved
            request = request.enclosing()
        return None

    def template(self) -> str | None:
        """The route the request is going to, as the application wrote it down; None if nobody knows.

        A template such as ``/orders/{id}``, never the path that a client sent: there are few of those.
        """
        outer = self.enclosing()
        return None if outer is None else outer.template()

    def find_name(self) -> str | None:
        """The request's method with its template; None as long as its route is not known."""
        outer = self.enclosing()
        return None if outer is None else outer.find_name()

    def record_errors(self) -> RequestErrors:
        """The record of what went wrong, begun if there is none; shared with the enclosing middlewares."""
        if self.request_errors is None:
            outer = self.enclosing()
            self.request_errors = RequestErrors() if outer is None else outer.record_errors()
        return self.request_errors

    def forget_error(self) -> None:
        """Drops the unhandled exception at the end: its traceback holds this request's frames.

        The outermost middleware does it, since an inner one may leave the exception to an outer one.
        """
        if self.request_errors is not None and self.enclosing() is None:
            self.request_errors.unhandled = None

    def enclosing(self) -> RequestScope | None:
        """What an enclosing middleware has opened for the same request, or None."""
        return None if self.outer is None else self.outer.request


def touch(scope: Scope | None, call_settings: Any) -> None:
    """Notes with the request that a scope is part of, if any, that it came to a guard."""
    if scope is not None and scope.request is not None:
        request = scope.request
        if call_settings not in request.touched:
            request.touched[call_settings] = request.clock()
        elif request.request_errors is not None:
            request.request_errors.failing.difference_update(gate.name for gate in call_settings.gates)


def note_guard_error(error: E) -> E:
    """Notes a guard's error with the request it happened in, if there is one, and returns it to be raised.

    Only the guard's name is kept: an error kept by its request would be a reference cycle.
    """
    scope = current()
    if scope is not None and scope.request is not None:
        scope.request.record_errors().failing.add(error.guard)
    return error


def current() -> Scope | None:
    """The innermost scope that has not ended."""
    scope = ambient.get()
    while scope is not None and scope.closed:
        scope = scope.outer
    return scope


def rank_of(scope: Scope | None) -> int:
    """How much code in a scope matters: what the innermost block around it says that says anything."""
    if ranked:
        while scope is not None:
            if scope.rank is not None and not scope.closed:
                return scope.rank
            scope = scope.outer
    return CRITICAL


def open_scope(at: float | None, guard: Any, clock: Clock, outer: Scope | None) -> Scope:
    """Opens a scope inside ``outer``, which is what ``current`` has just returned."""
    scope = Scope()
    scope.begin(at, guard, clock, outer)
    return enter(scope)


def enter(scope: S) -> S:
    """Makes a scope the current one."""
    ambient.set(scope)
    return scope


def swap(scope: Scope | None) -> Scope | None:
    """Makes another scope the current one, or none, and returns the one that was.

    For code that runs in steps with other code in between: what a step leaves behind is put back before
    the next.
    """
    previous = ambient.get()
    ambient.set(scope)
    return previous


def close(scope: Scope) -> None:
    """Ends a scope, from whichever context."""
    scope.closed = True
    scope.request = None  # a request's own scope would keep itself alive
    if ambient.get() is scope:
        ambient.set(scope.outer)


@contextmanager
def deadline(seconds: float, *, clock: Clock = time.monotonic) -> Iterator[None]:
    """Gives everything in the block, sync or async, at most this many seconds from now.

    Guarded calls inside take the smaller of this and their own timeout; one that finds no time left
    raises DeadlineSpentError instead of starting. Blocks nest, and the smaller budget wins. The block
    itself is not interrupted.

    Args:
        seconds: The budget. 0 or less means that no time is left.
        clock: What the budget is measured with; only tests need another.

    Raises:
        ConfigurationError: ``seconds`` is not a finite number, or the clock cannot be called.
    """
    if not finite(seconds) or not callable(clock):
        faults = Faults("deadline")
        if not finite(seconds):
            faults.add("seconds", seconds, "a finite number")
        faults.callable("clock", clock, none=False)
        faults.raise_if_any()
    scope = Scope()
    scope.begin(clock() + seconds, None, clock, current())
    try:
        enter(scope)
        yield
    finally:
        scope.closed = True  # before any call: an interrupt in one must not leave it open
        check_entered(scope, ambient.get())
        close(scope)


def remaining() -> float | None:
    """Seconds left of the ambient budget, 0.0 when it is spent, None when there is none."""
    scope = current()
    left = None if scope is None else scope.remaining()
    return None if left is None else max(0.0, left)
