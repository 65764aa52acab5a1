"""The ambient state of the library: deadlines, criticality and web requests. Must not import guards.

A context variable holds the innermost `Scope`, so tasks and worker threads that copy the context inherit it.
When its block ends, the scope is *closed*. A background task that still has it skips it, so that a deadline
ends with its block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from typing import Any, TypeVar

from guardrails._core.criticality import CRITICAL
from guardrails._runtime.request_errors import RequestErrors
from guardrails._runtime.unentered import check_entered
from guardrails._util.checks import Faults, finite
from guardrails.errors import CallTimeoutError, ClientGoneError, RejectedError

__all__ = [
    "GONE",
    "Client",
    "RankScope",
    "RequestScope",
    "Scope",
    "ambient",
    "client_is_gone",
    "close",
    "current",
    "deadline",
    "enforces",
    "enter",
    "note_guard_error",
    "open_scope",
    "rank_of",
    "ranked",
    "remaining",
    "swap",
    "time_left",
    "touch",
    "waiting_client",
    "would_not_run",
]

S = TypeVar("S", bound="Scope")
E = TypeVar("E", bound=RejectedError | CallTimeoutError)

Clock = Callable[[], float]

ambient: ContextVar[Scope | None] = ContextVar("guardrails_scope", default=None)


class Scope:
    """One block of code that runs under a deadline or for a guard.

    Attributes:
        at: The deadline by ``clock``, the smallest of this scope's and the enclosing ones; None without one.
        owner: The guard whose timeout gave the deadline; None for a `deadline` block.
        guard: The guard for which the block was opened; None for a `deadline` block.
        limit: The deadline of this scope's own timeout, if an enclosing scope's is smaller.
        clock: The clock of ``at``.
        outer: The enclosing scope.
        closed: True once the block has ended.
        request: The web request that this block is part of, or None.
        timed_task: The ``id`` of the asyncio task that is cancelled at ``at``; 0 without one. The task lives
            as long as the scope is open, so no other object has its id. A number keeps no object alive.
    """

    __slots__ = ("at", "clock", "closed", "guard", "limit", "outer", "owner", "request", "timed_task")

    rank: int | None = None  # a class attribute: only a `RankScope` sets it
    left_model = False  # True for a call in shadow that enforcing would have refused, or stopped by now
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
        """Initialises a scope inside ``outer``, the result of `current`."""
        self.at = at
        self.guard = self.owner = guard
        self.clock = clock
        self.outer = outer
        self.closed = False
        self.timed_task = 0
        self.request = None if outer is None else outer.request
        self.bound_by(outer)

    def bound_by(self, outer: Scope | None) -> None:
        """Applies the enclosing scope's deadline if it is sooner."""
        if outer is not None and outer.at is not None:
            self.bound_at(outer.at, outer.clock, outer.owner, outer.timed_task)

    def bound_at(self, at: float, clock: Clock, owner: Any, timed_task: int = 0) -> None:
        """Applies a deadline from outside if it is sooner."""
        own = self.clock
        bound = at if clock is own else own() + (at - clock())
        if self.at is None or bound <= self.at:
            self.limit = self.at
            self.at = bound
            self.owner = owner
            self.timed_task = timed_task

    def clear_deadline(self) -> None:
        """Removes this scope's own deadline; an enclosing one still applies."""
        if self.at is not None:
            outer = self.outer
            self.limit = None
            self.at = None if outer is None else outer.at
            if outer is not None:
                self.owner, self.clock = outer.owner, outer.clock

    def remaining(self) -> float | None:
        """Seconds until the deadline, negative after it; None without one."""
        return None if self.at is None else self.at - self.clock()


class Client:
    """The client that a request is served for, where the request's work is to end with it.

    Attributes:
        gone: True from its disconnect until the response is complete or the request has ended. Meanwhile no
            new work of the request starts.
    """

    __slots__ = ("gone",)

    gone: bool


GONE = Client()
"""Stands for the client of work that was stopped because its client has left. The response may be complete
before that work has ended, and then ``gone`` is False again."""


class RankScope(Scope):
    """A block of code with a criticality of its own.

    Attributes:
        rank: The rank of its criticality; see `guardrails._core.criticality`.
    """

    __slots__ = ("rank",)

    def __init__(self, rank: int, outer: Scope | None) -> None:
        self.begin(None, None, time.monotonic if outer is None else outer.clock, outer)
        self.rank = rank
        ranked.add(rank)


ranked: set[int] = set()
"""The ranks that this process has used. While it is empty, calls need not look for a `RankScope`."""


def would_not_run(scope: Scope | None, core: object = None) -> bool:
    """True for code in a block that runs only because nothing is enforced.

    Args:
        scope: The innermost scope.
        core: The gate of a call. One that is inside another call of the same gate is judged for itself: the
            blocks may be one in the other because they were opened in one place.
    """
    while scope is not None:
        if scope.left_model and not scope.closed and not _takes_slot_of(scope, core):
            return True
        scope = scope.outer
    return False


def _takes_slot_of(scope: Scope, core: object) -> bool:
    if scope.guard is None or scope.guard.call_settings.attached:
        return False
    return any(gate.core is core for gate in scope.guard.call_settings.gates)


class _Watched:
    """Stands for a guard in shadow, as the owner of a request's deadline."""

    attached = enforces = False

    def __init__(self) -> None:
        self.call_settings = self.root = self.core = self


_WATCHED = _Watched()


def enforces(guard: Any) -> bool:
    """True unless a guard is in shadow or off. None stands for a `deadline` block or a request."""
    return guard is None or bool(guard.call_settings.root.core.enforces)


def time_left(scope: Scope) -> float | None:
    """Seconds left of the deadlines that are enforced, negative when time is up; None without one."""
    if scope.at is None or enforces(scope.owner):
        return Scope.remaining(scope)
    left: float | None = None
    around: Scope | None = scope
    while around is not None:
        own = None
        if around.at is not None and enforces(around.guard):
            own = around.at if around.owner is around.guard else around.limit
        if own is not None:
            seconds = own - around.clock()
            left = seconds if left is None else min(left, seconds)
        around = around.outer
    return left


class RequestScope(Scope):
    """The scope of one HTTP request, opened by a middleware.

    Nested middlewares serve the same request: they share ``touched``. A slot that one of them has reserved is
    for the code inside it.

    Attributes:
        request_errors: The refusals and timeouts of guards inside it; None before the first.
        name: Its method and the template of its route, such as ``GET /orders/{id}``; None until it is known.
        touched: Time of the first call through each guard inside it, by the guard's `CallSettings`.
        reserved: (gate, number) of each reserved slot that is not used yet, by the core of the gate.
        client: Its client, which nested middlewares share; None where its work continues without the client.
        thread: The thread in which it began. A WSGI server serves it there to its end, and then the next one.
    """

    __slots__ = ("__weakref__", "client", "name", "request_errors", "reserved", "thread", "touched")

    def __init__(self, at: float | None, clock: Clock, outer: Scope | None) -> None:
        shared = None
        if outer is None:
            # A copy of ``begin`` for the usual case, no enclosing scope: it saves each request a frame.
            self.at, self.clock, self.outer = at, clock, None
            self.guard = self.owner = None
            self.closed, self.timed_task = False, 0
        else:
            self.begin(at, None, clock, outer)
            shared = self.request
        self.client: Client | None = None if shared is None else shared.client
        self.request_errors: RequestErrors | None = None
        self.name: str | None = None
        self.touched: dict[Any, float] = {} if shared is None else shared.touched
        self.reserved: dict[Any, tuple[Any, int]] = {}
        self.thread = get_ident()
        self.request = self

    @property
    def is_open(self) -> bool:
        """True until the server is done with the request, a streamed body and background tasks included."""
        return not self.closed

    def limit_until(self, at: float, *, enforced: bool) -> None:
        """Gives the request a deadline. One that is not enforced bounds no guard that enforces."""
        if enforced:
            self.at, self.owner, self.timed_task = at, None, 0
            self.bound_by(self.outer)
        else:
            self.bound_at(at, self.clock, _WATCHED)
            self.limit = None  # it has no deadline of its own for a guard that enforces

    def reservations_at(self, core: Any) -> dict[Any, tuple[Any, int]] | None:
        """The reserved slots of the middleware that has one at a gate; None without one."""
        request: RequestScope | None = self
        while request is not None:
            if core in request.reserved:
                return request.reserved
            request = request.enclosing()
        return None

    def template(self) -> str | None:
        """The template of the request's route, such as ``/orders/{id}``; None if it is unknown.

        It is never the path that the client sent, which has an unlimited number of values.
        """
        outer = self.enclosing()
        return None if outer is None else outer.template()

    def find_name(self) -> str | None:
        """The request's method with its template; None while its route is unknown."""
        outer = self.enclosing()
        return None if outer is None else outer.find_name()

    def record_errors(self) -> RequestErrors:
        """The record of errors, made if it is missing; the enclosing middlewares share it."""
        if self.request_errors is None:
            outer = self.enclosing()
            self.request_errors = RequestErrors() if outer is None else outer.record_errors()
        return self.request_errors

    def forget_error(self) -> None:
        """Drops the unhandled exception at the end of the request: its traceback keeps the request's frames.

        Only the outermost middleware drops it, as an outer one may need the exception of an inner one.
        """
        if self.request_errors is not None and self.enclosing() is None:
            self.request_errors.unhandled = None

    def enclosing(self) -> RequestScope | None:
        """The scope of the enclosing middleware for the same request, or None."""
        return None if self.outer is None else self.outer.request


def touch(scope: Scope | None, call_settings: Any) -> None:
    """Notes in the request of a scope that a call came to a guard."""
    if scope is not None and scope.request is not None:
        request = scope.request
        if call_settings not in request.touched:
            request.touched[call_settings] = request.clock()
        elif request.request_errors is not None:
            request.request_errors.failing.difference_update(gate.identity for gate in call_settings.gates)


def note_guard_error(error: E) -> E:
    """Notes a guard's error in the current request, if any; returns the error.

    Only the names are kept: a request that kept the error would be a reference cycle.
    """
    scope = current()
    if scope is not None and scope.request is not None:
        scope.request.record_errors().failing.add((error.guard, error.compartment))
    return error


def client_is_gone(scope: Scope | None) -> bool:
    """True if a scope is part of a request whose client has left, where the work is to end with it."""
    request = None if scope is None else scope.request
    client = None if request is None else request.client
    return client is not None and client.gone


def waiting_client(scope: Scope | None, guard: str) -> Client | None:
    """The client for which work in a scope is about to start; None if the work does not depend on one.

    Args:
        scope: The innermost scope, or one that has ended.
        guard: The name of the guard or compartment that the work goes through. It must enforce.

    Raises:
        ClientGoneError: The client has left.
    """
    while scope is not None and scope.closed:
        scope = scope.outer
    request = None if scope is None else scope.request
    client = None if request is None else request.client
    if client is not None and client.gone:
        raise note_guard_error(ClientGoneError(guard))
    return client


def current() -> Scope | None:
    """The innermost scope that has not ended."""
    scope = ambient.get()
    while scope is not None and scope.closed:
        scope = scope.outer
    return scope


def rank_of(scope: Scope | None) -> int:
    """The rank of the innermost `RankScope` around a scope; `CRITICAL` without one."""
    if ranked:
        while scope is not None:
            if scope.rank is not None and not scope.closed:
                return scope.rank
            scope = scope.outer
    return CRITICAL


def open_scope(at: float | None, guard: Any, clock: Clock, outer: Scope | None) -> Scope:
    """Opens a scope inside ``outer``, the result of `current`."""
    scope = Scope()
    scope.begin(at, guard, clock, outer)
    return enter(scope)


def enter(scope: S) -> S:
    """Makes a scope the current one."""
    ambient.set(scope)
    return scope


def swap(scope: Scope | None) -> Scope | None:
    """Makes another scope (None: no scope) the current one and returns the previous one.

    For work that runs in steps with other code in between: each step restores the work's own scope.
    """
    previous = ambient.get()
    ambient.set(scope)
    return previous


def close(scope: Scope) -> None:
    """Ends a scope, in any context."""
    scope.closed = True
    scope.request = None  # a request's own scope would keep itself alive
    if ambient.get() is scope:
        ambient.set(scope.outer)


@contextmanager
def deadline(seconds: float, *, clock: Clock = time.monotonic) -> Iterator[None]:
    """Limits the time of all guarded calls in the block, sync or async.

    A guarded call inside has the smaller of this deadline and its own timeout. After the deadline it raises
    DeadlineSpentError instead of starting. Blocks nest, and the smallest deadline counts. The block itself is
    not interrupted.

    Args:
        seconds: Seconds from now to the deadline. With 0 or less, no time is left.
        clock: Returns the time in seconds; for tests.

    Raises:
        ConfigurationError: ``seconds`` is not a finite number, or ``clock`` cannot be called.
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
        scope.closed = True  # before any call, in which an interrupt would leave it open
        check_entered(scope, ambient.get())
        close(scope)


def remaining() -> float | None:
    """Seconds until the ambient deadline, 0.0 after it, None without one.

    Also 0.0 once the client of the request has gone, where the middleware has ``cancel_on_disconnect``.
    """
    scope = current()
    if client_is_gone(scope):
        return 0.0
    left = None if scope is None else time_left(scope)
    return None if left is None else max(0.0, left)
