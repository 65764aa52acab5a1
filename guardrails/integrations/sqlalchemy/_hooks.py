"""The methods of a dialect *instance* that a guard replaces. Knows what SQLAlchemy hands to each of them.

That costs under a microsecond a statement, where event listeners cost seven and never see a COMMIT, a
reset on return, a ping or a connect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.sql.expression import ReleaseSavepointClause, RollbackToSavepointClause

from guardrails._checks import Faults
from guardrails.errors import CallTimeoutError, CommitUnknownError
from guardrails.integrations.sqlalchemy._cursors import DroppedCursor, ServerCursor, SteppedCursor
from guardrails.integrations.sqlalchemy._pool import Admission, Checkout
from guardrails.integrations.sqlalchemy._second import redirected
from guardrails.integrations.sqlalchemy._work import Worker

__all__ = ["TIMEOUT_OPTION", "Hooks"]

TIMEOUT_OPTION = "guardrails_timeout"
"""Execution option with the seconds one statement may take, and each fetch of a stream."""

_SAVEPOINT_ENDS = (ReleaseSavepointClause, RollbackToSavepointClause)


class Hooks:
    """Puts work of a dialect through a worker.

    Args:
        engine: Whose dialect it is.
        admission: Knows which checkout a connection is in.
        worker: Runs the work.
    """

    def __init__(self, engine: Engine, admission: Admission, worker: Worker) -> None:
        self._dialect = engine.dialect
        self._admission = admission
        self._worker = worker
        self._hooked: list[str] = []
        self.commit = self._around_commit(engine.dialect.do_commit)
        self.rollback = self._around_rollback(engine.dialect.do_rollback)

    def attach(self) -> None:
        """Replaces the methods."""
        for method in ("do_execute", "do_execute_no_params"):
            self._hook(method, self._around_statement)
        # PyMySQL makes one INSERT of many only if the statement begins with the word.
        self._hook("do_executemany", partial(self._around_statement, many=True))
        self._replace("do_commit", self.commit)
        self._hook("do_commit_twophase", self._around_second_phase)
        self._replace("do_rollback", self.rollback)
        self._hook("do_ping", self._around_ping)
        self._hook("connect", self._around_connect)
        self._hook("initialize", self._around_questions)
        self._replace("execution_ctx_cls", _with_own_cursors(self._dialect.execution_ctx_cls))
        if hasattr(self._dialect, "_hstore_oids"):  # what psycopg2's dialect asks behind its own back
            self._hook("_hstore_oids", self._around_questions)

    def detach(self) -> None:
        """Brings the dialect's own methods back."""
        for method in self._hooked:
            delattr(self._dialect, method)
        self._hooked.clear()

    def check_timeout(self, timeout: Any) -> float:
        """See ProxyWork."""
        return _checked(timeout)

    def allow(self, statement: Any, timeout: float | None) -> Any:
        """See ProxyWork."""
        if timeout is None and self._worker.lifts_backstop:
            timeout = self._worker.time_in_scope(None)
        if timeout is None or not isinstance(statement, str):
            return statement
        return self._worker.allow(statement, timeout)

    def run(
        self,
        fairy: Any,
        call: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        timeout: float | None,
    ) -> Any:
        """See ProxyWork."""
        if kwargs:
            call = partial(call, **kwargs)
        record = fairy._connection_record  # noqa: SLF001 - no public way
        return self._worker.run(
            call, args, fairy.dbapi_connection, self._admission.checkout_of(record), timeout=timeout
        )

    def lend(self, fairy: Any) -> None:
        """See ProxyWork."""
        checkout = self._admission.checkout_of(fairy._connection_record)  # noqa: SLF001 - no public way
        if checkout is not None and checkout.lent is None:
            checkout.lent = self._worker.lend(fairy.dbapi_connection)

    def finish(
        self, fairy: Any, close: Callable[..., Any], args: Sequence[Any], timeout: float | None
    ) -> Any:
        """See ProxyWork."""
        return self._worker.bounds(close, args, fairy.dbapi_connection, timeout)

    def _hook(self, method: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._replace(method, around(getattr(self._dialect, method)))

    def _replace(self, name: str, ours: Any) -> None:
        self._hooked.append(name)
        setattr(self._dialect, name, ours)

    def _around_statement(self, original: Callable[..., Any], *, many: bool = False) -> Callable[..., Any]:
        run, checkout_of = self._worker.run, self._admission.checkout_of
        steps_in_fetch, allow = self._worker.fetches, self._worker.allow
        in_scope = self._worker.time_in_scope if self._worker.lifts_backstop else None
        streaming = DroppedCursor if self._worker.reads_when_dropped else ServerCursor

        def execute(*args: Any, **kwargs: Any) -> Any:
            if kwargs:
                args = (*args, kwargs["context"])
            context = args[-1]
            if context is None:
                return original(*args)
            fairy = context.root_connection._dbapi_connection  # noqa: SLF001 - no public way that costs nothing
            timeout = context.execution_options.get(TIMEOUT_OPTION)
            streams = context._is_server_side  # noqa: SLF001 - likewise
            if timeout is not None:
                timeout = _checked(timeout)
            connection, checkout = fairy.dbapi_connection, checkout_of(fairy._connection_record)  # noqa: SLF001 - likewise
            given = in_scope(checkout) if timeout is None and in_scope is not None else timeout
            if (streams or given is not None) and not many:
                args = (args[0], allow(args[1], given, streams=streams), *args[2:])
            compiled = context.compiled
            ending = compiled is not None and isinstance(compiled.statement, _SAVEPOINT_ENDS)
            result = run(original, args, connection, checkout, timeout=timeout, ending=ending)
            stepped = steps_in_fetch and context.cursor.description and not context.executemany
            if stepped or streams:

                def step(fetch: Callable[..., Any], *size: int) -> Any:
                    return run(fetch, size, connection, checkout, timeout=timeout)

                if context._is_server_side:  # noqa: SLF001
                    user = context.root_connection
                    finish = partial(self._finish_stream, user, connection, checkout, timeout)
                    context.cursor = streaming(context.cursor, step, finish)
                else:
                    context.cursor = SteppedCursor(context.cursor, step)
            return result

        return execute

    def _finish_stream(
        self,
        user: Connection,
        connection: Any,
        checkout: Checkout | None,
        timeout: float | None,
        close: Callable[[], Any],
    ) -> Any:
        try:
            return self._worker.bounds(close, (), connection, timeout)
        except CallTimeoutError as error:
            user.invalidate(error)  # SQLAlchemy logs what goes wrong here and goes on
            raise
        except asyncio.CancelledError:
            if checkout is not None:
                checkout.deserted = True
            raise

    def _around_commit(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        run, checkout_of = self._worker.run, self._admission.checkout_of

        def commit(fairy: Any) -> Any:
            connection = fairy.dbapi_connection
            record = fairy._connection_record  # noqa: SLF001 - no public way
            return run(original, (connection,), connection, checkout_of(record), commit=True)

        return commit

    def _around_second_phase(self, original: Callable[..., Any]) -> Callable[..., Any]:
        unknown = self._worker.unknown

        def commit(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)  # it arrives at the hooks as a statement
            except CommitUnknownError:
                raise
            except CallTimeoutError as error:
                raise unknown(error) from error.__cause__

        return commit

    def _around_rollback(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        run, checkout_of = self._worker.run, self._admission.checkout_of

        def rollback(fairy: Any) -> Any:
            # The collector returns connections without their fairy.
            connection = getattr(fairy, "dbapi_connection", fairy)
            record = getattr(fairy, "_connection_record", None)
            return run(original, (connection,), connection, checkout_of(record), ending=True)

        return rollback

    def _around_ping(self, original: Callable[[Any], bool]) -> Callable[[Any], Any]:
        run, checkout_with = self._worker.run, self._admission.checkout_with

        def ping(connection: Any) -> Any:
            return run(original, (connection,), connection, checkout_with(connection))

        return ping

    def _around_connect(self, original: Callable[..., Any]) -> Callable[..., Any]:
        connect = self._worker.connect

        def connect_within(*args: Any, **kwargs: Any) -> Any:
            second = redirected(kwargs)
            if second is not None:
                return original(*args, **second)
            return connect(partial(original, *args), kwargs)

        return connect_within

    def _around_questions(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """What a dialect asks the first connection, some of it past its own hooks."""
        bounds = self._worker.bounds

        def ask(connection: Any) -> Any:
            fairy = getattr(connection, "connection", None)  # SQLAlchemy's connection, or the driver's
            return bounds(original, (connection,), fairy.dbapi_connection if fairy else connection)

        return ask


def _with_own_cursors(context: type[ExecutionContext]) -> type[ExecutionContext]:
    """The class of execution contexts, but with the driver's cursors: their work is hooked above."""

    def create_cursor(self: Any) -> Any:
        self._dbapi_connection = self._dbapi_connection.dbapi_connection
        return context.create_cursor(self)

    return type(context.__name__, (context,), {"create_cursor": create_cursor})


def _checked(timeout: Any) -> float:
    faults = Faults("execution_options")
    faults.seconds(TIMEOUT_OPTION, timeout)
    faults.raise_if_any()
    return float(timeout)
