"""Runs the work of psycopg's connections.

Statements, transactions, COPY, pipelines and server-side cursors are generators that a connection consumes
with its ``wait()``, so that is the only hook. Depends on the runner; must not import a pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg

from guardrails._dbapi.runner_on_loop import LoopRunner
from guardrails._pool.checkout import Checkout
from guardrails.errors import CallTimeoutError, ConnectionRevokedError, RejectedError

__all__ = ["ConnectionWork", "PoolCheckout", "WorkState", "once"]

_PROVE = frozenset({"_execute_gen", "_declare_gen", "copy_end", "_end_copy_out_gen", "_sync_gen"})
"""Generators whose success is evidence."""

_EXECUTE = ("_execute", "_stream_send")
_END = frozenset({"_rollback_gen", "_close_gen"})
_COMMIT = "_commit_gen"
_BLOCK_END = "_exit_gen"
"""The end of a transaction block, or of a pipeline."""
_TWO_PHASE_END = "_tpc_finish_gen"
_NOTIFICATIONS = "notifies"
"""Waits for notifications of the server, for any time."""


class PoolCheckout(Checkout):
    """One connection out of its pool.

    Attributes:
        connection: Weak reference to it.
    """

    __slots__ = ("connection",)

    connection: Callable[[], Any]

    def held_object(self) -> object:
        """See HeldCheckout."""
        return self.connection()


class WorkState:
    """What is known of one connection.

    Attributes:
        checkout: Its checkout; None while it is idle, and while it is set up.
        stopped: True once work on it was stopped; it is closed then.
        began: When its opening began, on ``time.monotonic``.
        opened: When it was open.
        closed: Counts its closing.
    """

    __slots__ = ("began", "checkout", "closed", "opened", "stopped")

    def __init__(self, began: float, opened: float) -> None:
        self.checkout: PoolCheckout | None = None
        self.stopped = False
        self.began = began
        self.opened = opened
        self.closed: Callable[[], object] = bool

    @property
    def ages(self) -> tuple[float, float]:
        """Seconds since the connection was open, and since its opening began."""
        now = time.monotonic()
        return now - self.opened, now - self.began

    def refuse_lost(self) -> None:
        """Refuses to continue with a connection that was stopped or taken back.

        Raises:
            ConnectionRevokedError: It was taken back.
            OperationalError: Work on it was stopped.
        """
        hold = None if self.checkout is None else self.checkout.hold
        if hold is not None and hold.revoked:
            raise hold.new_error()
        if self.stopped:
            raise psycopg.OperationalError(
                "the connection is closed: work on it was stopped at its deadline; return it to the pool"
            )


class ConnectionWork:
    """Runs the work of one pool's connections.

    Args:
        runner: Runs it as evidence, within its deadline.
        clock: The guard's clock.
    """

    def __init__(self, runner: LoopRunner, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._clock = clock

    def run(self, connection: Any, wait: Callable[..., Any], generator: Any, args: Any, options: Any) -> Any:
        """Consumes a generator of a connection.

        Args:
            connection: The connection.
            wait: Its class's own ``wait``.
            generator: The generator.
            args: The other arguments of ``wait``.
            options: Its keyword arguments.
        """
        state: WorkState = connection._guardrails  # noqa: SLF001 - of the class made for it

        def call() -> Any:
            return wait(connection, generator, *args, **options)

        if _name(generator) == _NOTIFICATIONS:
            with _Busy(state, self._clock):
                return call()
        how = _how(generator, connection)
        if _is_over(state, how):
            return None
        try:
            return self._runner.run(call, (), connection, state.checkout, **how)  # type: ignore[arg-type]
        except CallTimeoutError:
            state.stopped = True
            raise
        except RejectedError as refusal:
            undo = _undo(generator, connection, refusal) if how["commit"] else None
            if undo is not None:
                self.run(connection, wait, undo, (), {})
            raise

    async def run_async(
        self, connection: Any, wait: Callable[..., Any], generator: Any, args: Any, options: Any
    ) -> Any:
        """Consumes a generator of an asyncio connection; see `run`."""
        state: WorkState = connection._guardrails  # noqa: SLF001 - likewise

        async def call() -> Any:
            return await wait(connection, generator, *args, **options)

        if _name(generator) == _NOTIFICATIONS:
            with _Busy(state, self._clock):
                return await call()
        how = _how(generator, connection)
        if _is_over(state, how):
            return None
        try:
            return await self._runner.run_async(call, (), connection, state.checkout, **how)
        except CallTimeoutError:
            state.stopped = True
            raise
        except RejectedError as refusal:
            undo = _undo(generator, connection, refusal) if how["commit"] else None
            if undo is not None:
                await self.run_async(connection, wait, undo, (), {})
            raise


class _Busy:
    """A block in which work runs that may take any time, and is no evidence."""

    def __init__(self, state: WorkState, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._hold = None if state.checkout is None else state.checkout.hold

    def __enter__(self) -> None:
        if self._hold is not None:
            self._hold.begin()

    def __exit__(self, *error: object) -> None:
        if self._hold is not None:
            self._hold.append(self._clock())


def _name(generator: Any) -> str:
    return getattr(generator, "__name__", "")


def _how(generator: Any, connection: Any) -> dict[str, bool]:
    """Tells what kind of work a generator is; see `StatementRunner.run`."""
    name, pipeline = _name(generator), connection._pipeline is not None  # noqa: SLF001 - no public way
    commit = ending = False
    proves = name in _PROVE or name.startswith(_EXECUTE)
    if name == _COMMIT:
        commit = True
    elif name in _END:
        ending = True
    elif name in {_BLOCK_END, _TWO_PHASE_END}:
        given = generator.gi_frame.f_locals
        if name == _TWO_PHASE_END:
            commit, ending = given["action"] == "COMMIT", given["action"] != "COMMIT"
        elif "exc_type" not in given:
            proves = True  # of a pipeline, which waits here for what was sent
        else:
            block = given["self"]
            undone = given["exc_type"] is not None or block.force_rollback
            commit = not undone and block._outer_transaction  # noqa: SLF001 - likewise
            ending = not commit
    elif pipeline and name.startswith(_EXECUTE):
        proves = False  # it is only sent
    return {"commit": commit, "ending": ending, "proves": proves}


def _is_over(state: WorkState, how: dict[str, bool]) -> bool:
    """True if there is nothing to end: the connection is closed, which has rolled all of it back."""
    try:
        state.refuse_lost()
    except (ConnectionRevokedError, psycopg.OperationalError):
        if how["ending"]:
            return True
        raise
    return False


def _undo(generator: Any, connection: Any, refusal: RejectedError) -> Any:
    """The rollback of a transaction whose COMMIT was refused: psycopg takes it for ended."""
    if _name(generator) == _COMMIT:
        return connection._rollback_gen()  # noqa: SLF001 - no public way
    if _name(generator) == _BLOCK_END:
        return generator.gi_frame.f_locals["self"]._exit_gen(type(refusal), refusal, None)  # noqa: SLF001
    return None


def once(call: Callable[[], object]) -> Callable[[], object]:
    """Returns a function that makes a call at most once."""
    left = [call]

    def once() -> None:
        if left:
            left.pop()()

    return once
