"""Runs SQLAlchemy's statements, and the fetches of their results, as driver work.

Depends on SQLAlchemy's execution contexts; must not import a driver. The cursor stays the driver's own
object, so listeners see what they expect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Dialect
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.sql.expression import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause

from guardrails._dbapi.runner import StatementRunner
from guardrails._util.checks import Faults, unknown_option
from guardrails.errors import CallTimeoutError
from guardrails.integrations.sqlalchemy._fetching import fetch_batches, fetch_in_steps
from guardrails.integrations.sqlalchemy._pool import EngineAdmission
from guardrails.integrations.sqlalchemy._proxied import (
    dbapi_connection_of,
    get_dbapi_connection,
    refuse_revoked,
)

if TYPE_CHECKING:
    from guardrails._dbapi.checkout import DBAPICheckout

__all__ = ["TIMEOUT_OPTION", "Statements", "check_names", "check_timeout"]

TIMEOUT_OPTION = "guardrails_timeout"
"""The execution option with the timeout of one statement, and of each fetch of a stream, in seconds."""

_OURS = "guardrail"
"""The beginning of the names of our execution options, and of most that are misspelt."""

_SAVEPOINT_ENDS = (ReleaseSavepointClause, RollbackToSavepointClause)


class Statements:
    """Hooks for the statements of one dialect.

    Args:
        dialect: The engine's dialect.
        admission: Finds the checkout of a connection.
        runner: Runs the work.
    """

    def __init__(self, dialect: Dialect, admission: EngineAdmission, runner: StatementRunner) -> None:
        self._dispatch: Any = dialect.dispatch
        self._checkout_of = admission.checkout_of
        self._runner = runner
        self._special: type[ExecutionContext] = ExecutionContext

    def context_class(self, base: type[ExecutionContext]) -> type[ExecutionContext]:
        """Returns a class of execution contexts that make cursors of the driver's own connection.

        The proxied connection would make cursors whose work is guarded a second time.
        """
        runner, checkout_of, dispatch = self._runner, self._checkout_of, self._dispatch
        ours: Any = type(base.__name__, (base,), {"__module__": base.__module__})
        self._special = special = _special_context_class(ours, runner)

        def create_cursor(self: Any) -> Any:
            fairy = self._dbapi_connection
            try:
                connection = get_dbapi_connection(fairy)
            except TypeError:
                connection = dbapi_connection_of(fairy)
            root, one, many = self.root_connection, dispatch.do_execute, dispatch.do_executemany
            if (
                root._has_events  # noqa: SLF001 - no public way
                or root.engine._has_events  # noqa: SLF001 - likewise
                or one.listeners
                or one.parent_listeners
                or many.listeners
                or many.parent_listeners
            ):
                checkout = checkout_of(fairy._connection_record)  # noqa: SLF001 - likewise
                if checkout is not None:
                    # Listeners get the cursor. They may use it before, after or instead of the statement.
                    self.__class__ = special
                    self.guardrails_checkout = checkout
                    runner.open_bracket(connection, checkout, self.execution_options.get(TIMEOUT_OPTION))
            if "cursor" in getattr(fairy, "__dict__", ()):  # replaced on this connection, as tracing tools do
                cursor = base.create_cursor(self)
                self._dbapi_connection = connection
                return cursor
            self._dbapi_connection = connection
            return base.create_cursor(self)

        ours.create_cursor = create_cursor
        return ours  # type: ignore[no-any-return]

    def around(self, original: Callable[..., Any], *, many: bool = False) -> Callable[..., Any]:
        """Returns a dialect's method that executes a statement as driver work."""
        run, checkout_of, allow = self._runner.run, self._checkout_of, self._runner.allow
        run_listened, steps_in_fetch = self._run_listened, self._runner.fetches
        watch_stream, finish = self._watch_stream, self._finish_stream
        questioned = self._runner.questioned
        in_scope = self._runner.time_in_scope if self._runner.lifts_backstop else None

        def execute(*args: Any, **kwargs: Any) -> Any:
            if kwargs:
                args = (*args, kwargs["context"])
            context = args[-1]
            if context is None:
                return original(*args)
            options = context.execution_options
            timeout = _timeout_of(options) if options else None
            streams = context._is_server_side  # noqa: SLF001 - no public way that costs nothing
            connection = context._dbapi_connection  # noqa: SLF001 - likewise
            checkout = checkout_of(context.root_connection._dbapi_connection._connection_record)  # noqa: SLF001
            given = in_scope(checkout) if timeout is None and in_scope is not None else timeout
            if (streams or given is not None) and not many:
                args = (args[0], allow(args[1], given, streams=streams), *args[2:])
            compiled = context.compiled
            element = None if compiled is None else compiled.statement
            ending = isinstance(element, _SAVEPOINT_ENDS)
            proves = not (isinstance(element, SavepointClause) or (questioned and connection in questioned))
            work: Callable[..., Any] = run
            if checkout is None:
                refuse_revoked(context.root_connection._dbapi_connection)  # noqa: SLF001 - likewise
            else:
                ending = ending or checkout.ends
                work = run if checkout.listener_limit is None else run_listened
            result = work(original, args, connection, checkout, timeout=timeout, ending=ending, proves=proves)
            if streams or (steps_in_fetch and not context.executemany):

                def step(fetch: Callable[..., Any], *size: int) -> Any:
                    return run(fetch, size, connection, checkout, timeout=timeout)

                if streams:
                    watch_stream(context, step, partial(finish, checkout=checkout, timeout=timeout))
                else:
                    fetch_in_steps(context, step)
            return result

        return execute

    def _run_listened(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        connection: Any,
        checkout: DBAPICheckout,
        *,
        timeout: float | None,
        **how: bool,
    ) -> Any:
        """Runs a statement. Its listeners have its timeout once before it and once after it."""
        self._runner.end_bracket(checkout)
        result = self._runner.run(call, args, connection, checkout, timeout=timeout, **how)
        self._runner.open_bracket(connection, checkout, timeout)
        return result

    def _watch_stream(self, context: Any, step: Callable[..., Any], finish: Callable[..., Any]) -> None:
        """Makes the result of a stream fetch in steps, its first fetch included."""
        finish = partial(finish, context.root_connection, context._dbapi_connection)  # noqa: SLF001 - likewise
        context.__class__ = self._special
        context.guardrails_fetching = partial(
            fetch_batches, step=step, finish=finish, drops=self._runner.reads_when_dropped
        )

    def _finish_stream(
        self,
        user: Connection,
        connection: Any,
        close: Callable[[], Any],
        *,
        checkout: DBAPICheckout | None,
        timeout: float | None,
    ) -> Any:
        try:
            return self._runner.finish(close, (), connection, checkout, timeout)
        except CallTimeoutError as error:
            user.invalidate(error)  # SQLAlchemy logs the error and continues
            raise
        except asyncio.CancelledError:
            if checkout is not None:
                checkout.caller_cancelled = True
            raise


def _special_context_class(base: type[ExecutionContext], runner: StatementRunner) -> type[ExecutionContext]:
    """Returns the class of contexts of statements with listeners, and of streams."""

    def post_exec(self: Any) -> None:
        base.post_exec(self)
        checkout = self.guardrails_checkout
        if checkout is not None and checkout.listener_limit is not None:
            runner.end_bracket(checkout)
            if checkout.listening:
                runner.open_bracket(self._dbapi_connection, checkout, None)

    def _setup_result_proxy(self: Any) -> Any:
        if self.guardrails_fetching is not None:
            self.guardrails_fetching(self)
        return base._setup_result_proxy(self)  # noqa: SLF001 - no public way

    own = {
        "__module__": base.__module__,
        "_setup_result_proxy": _setup_result_proxy,
        "guardrails_checkout": None,
        "guardrails_fetching": None,
        "post_exec": post_exec,
    }
    return type(base.__name__, (base,), own)


def _timeout_of(options: Mapping[str, Any]) -> float | None:
    """Returns the timeout that a statement's execution options give; None without one.

    Raises:
        ConfigurationError: It is wrong, or a name looks like an option of ours and is none.
    """
    check_names(tuple(options))
    timeout = options.get(TIMEOUT_OPTION)
    return None if timeout is None else check_timeout(timeout)


@lru_cache
def check_names(names: tuple[object, ...]) -> None:
    """Checks the names of execution options. The same names are checked once.

    Raises:
        ConfigurationError: One looks like an option of ours and is none.
    """
    for name in names:
        if isinstance(name, str) and name.startswith(_OURS) and name != TIMEOUT_OPTION:
            raise unknown_option("execution_options", name, [TIMEOUT_OPTION])


def check_timeout(timeout: Any) -> float:
    """Returns a statement's timeout in seconds.

    Raises:
        ConfigurationError: It is not a positive number.
    """
    faults = Faults("execution_options")
    faults.seconds(TIMEOUT_OPTION, timeout)
    faults.raise_if_any()
    return float(timeout)
