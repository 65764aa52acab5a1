"""Runs the work of asyncpg's connections: replaces the class of a connection's protocol.

Statements, prepared statements, cursors, transactions, COPY and LISTEN all end in a few coroutines of that
protocol, so these are the only hooks. Depends on the runner; must not import a pool.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import asyncpg

from guardrails._dbapi.runner_on_loop import LoopRunner
from guardrails._pool.checkout import Checkout
from guardrails._pool.life import Age
from guardrails.errors import CallTimeoutError, RejectedError

__all__ = ["ProtocolWork", "WorkState", "state_of"]

_STATE = "_guardrails"

_PROVE = ("bind_execute", "bind_execute_many", "copy_in", "copy_out")
"""Coroutines of the protocol whose success is evidence."""

_STEPS = ("prepare", "bind", "execute")
"""Coroutines whose success is none: parsing, opening a cursor, and fetching from it."""

_ENDS = ("close_portal", "close_statement")
"""Coroutines that tidy up."""

_NO_PROOF = frozenset({"BEGIN", "START", "SAVEPOINT", ""})
"""First words of statements that succeed even while all others fail; without a word it is a ping."""

_COMMIT = frozenset({"COMMIT", "END"})
_ROLL_BACK = frozenset({"ROLLBACK", "ABORT"})
_END = _ROLL_BACK | {"RELEASE"}
_LONGEST_WORD = 9


class WorkState:
    """What is known of one connection.

    Attributes:
        connection: Weak reference to asyncpg's connection.
        checkout: Its checkout; None while it is idle, and while it is set up.
        stopped: True once work on it was stopped: only its release is possible.
        returning: True while it returns to the pool.
        age: Its age.
        began: When its opening began, on ``time.monotonic``.
    """

    __slots__ = ("age", "began", "checkout", "connection", "returning", "stopped")

    def __init__(self, connection: Any, age: Age, began: float) -> None:
        self.connection: Callable[[], Any] = weakref.ref(connection)
        self.checkout: Checkout | None = None
        self.stopped = self.returning = False
        self.age = age
        self.began = began

    def hand_out(self, checkout: Checkout | None) -> None:
        """Begins a checkout; None ends it."""
        self.checkout = checkout
        self.stopped = self.returning = False

    @property
    def ages(self) -> tuple[float, float]:
        """Seconds since the connection was open, and since its opening began."""
        now = time.monotonic()
        return now - self.age.opened, now - self.began


def state_of(connection: Any) -> WorkState | None:
    """Returns the state of a guarded connection; None for another one, or after its end."""
    found: WorkState | None = getattr(connection._protocol, _STATE, None)  # noqa: SLF001 - no public way
    return found


class ProtocolWork:
    """Runs the work of one pool's connections.

    Args:
        runner: Runs it as evidence, within its deadline.
    """

    def __init__(self, runner: LoopRunner) -> None:
        self._runner = runner
        self._classes: dict[type, type] = {}

    def take_over(self, connection: Any, age: Age, began: float) -> WorkState:
        """Guards a connection; see `WorkState` for the arguments."""
        protocol = connection._protocol  # noqa: SLF001 - no public way
        plain = type(protocol)
        if plain not in self._classes:
            self._classes[plain] = self._guarded(plain)
        state = WorkState(connection, age, began)
        setattr(protocol, _STATE, state)
        protocol.__class__ = self._classes[plain]
        return state

    def restore(self, connection: Any) -> None:
        """Restores the class of a connection's protocol."""
        protocol = connection._protocol  # noqa: SLF001 - no public way
        if type(protocol) in self._classes.values():
            protocol.__class__ = type(protocol).__bases__[0]
            delattr(protocol, _STATE)

    def _guarded(self, plain: Any) -> type:
        # A single base and empty slots, else CPython refuses the replacement ("object layout differs").
        own: dict[str, Any] = {"__slots__": (), "__module__": plain.__module__}
        for names, how in (
            (_PROVE, {}),
            (_STEPS, {"proves": False}),
            (_ENDS, {"ending": True}),
        ):
            own |= {name: self._around(getattr(plain, name), how) for name in names}
        own["query"] = self._around_query(plain.query)
        return type(plain.__name__, (plain,), own)

    def _around(self, original: Any, how: dict[str, bool]) -> Any:
        run = self._weak_run()

        async def work(self: Any, *args: Any, **kwargs: Any) -> Any:
            call = partial(original, **kwargs) if kwargs else original
            return await run(self, call, args, **how)

        return work

    def _around_query(self, original: Any) -> Any:
        run = self._weak_run()

        async def query(self: Any, query: Any, timeout: Any) -> Any:  # noqa: ASYNC109 - asyncpg's own
            word = _first_word(query)
            state: WorkState = self._guardrails
            if state.stopped and word in _ROLL_BACK:
                return "ROLLBACK"  # its end rolls back as well
            try:
                return await run(
                    self,
                    original,
                    (query, timeout),
                    ending=state.returning or word in _END,
                    commit=word in _COMMIT,
                    proves=word not in _NO_PROOF,
                )
            except RejectedError:
                if word in _COMMIT:  # asyncpg takes a transaction whose COMMIT has raised for ended
                    await run(self, original, ("ROLLBACK;", None), ending=True)
                raise

        return query

    def _weak_run(self) -> Any:
        """Returns `_run`, which does not keep the pool alive: its event loop keeps each open connection."""
        found = weakref.WeakMethod(self._run)

        def run(protocol: Any, call: Any, args: tuple[Any, ...], **how: bool) -> Any:
            method = found()
            return call(protocol, *args) if method is None else method(protocol, call, args, **how)

        return run

    async def _run(self, protocol: Any, call: Any, args: tuple[Any, ...], **how: bool) -> Any:
        state: WorkState = protocol._guardrails  # noqa: SLF001 - of the class made here
        if state.stopped:
            raise asyncpg.InterfaceError(
                "cannot perform operation: work on this connection was stopped at its deadline; "
                "release it and acquire another one"
            )
        if state.returning:
            how["ending"] = True
        try:
            return await self._runner.run_async(
                call, (protocol, *args), state.connection(), state.checkout, **how
            )
        except CallTimeoutError:
            state.stopped = True
            raise


def _first_word(query: object) -> str:
    if not isinstance(query, str):
        return ""
    return query.lstrip()[:_LONGEST_WORD].partition(" ")[0].rstrip("; \n\t").upper()
