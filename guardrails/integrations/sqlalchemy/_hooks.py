"""Replaces methods of a dialect instance, so that its work runs through the guard.

Depends on the arguments that SQLAlchemy passes to these methods; must not import a driver. The replacements
cost under a microsecond a statement. Event listeners cost seven, and see no COMMIT, reset on return, ping or
connect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlalchemy.engine import ExceptionContext

from guardrails._dbapi.runner import StatementRunner
from guardrails.errors import CallTimeoutError, ConnectionRevokedError, RejectedError
from guardrails.integrations.sqlalchemy._characteristics import around_characteristic, around_set_readonly
from guardrails.integrations.sqlalchemy._closing import around_close, around_terminate
from guardrails.integrations.sqlalchemy._creator import around_initialize
from guardrails.integrations.sqlalchemy._listeners import BoundedListeners
from guardrails.integrations.sqlalchemy._pool import EngineAdmission
from guardrails.integrations.sqlalchemy._proxied import (
    dbapi_connection_of,
    get_dbapi_connection,
    refuse_revoked,
    revoked_connection_of,
)
from guardrails.integrations.sqlalchemy._revoking import Revocation, around_rollback_to_savepoint
from guardrails.integrations.sqlalchemy._second_connection import second_connection_arguments
from guardrails.integrations.sqlalchemy._statements import Statements, check_timeout
from guardrails.integrations.sqlalchemy._two_phase import TwoPhase

if TYPE_CHECKING:
    from guardrails._dbapi.checkout import DBAPICheckout
    from guardrails._dbapi.limit import Limit

__all__ = ["DialectHooks"]


class DialectHooks:
    """The hooks of one dialect, and the work of its pool's connections (see `ProxyWork`).

    Args:
        engine: The dialect's engine.
        admission: Finds the checkout of a connection.
        runner: Runs the work.
    """

    def __init__(self, engine: Engine, admission: EngineAdmission, runner: StatementRunner) -> None:
        self._dialect = engine.dialect
        self._admission = admission
        self._runner = runner
        self._hooked: list[str] = []
        self.checkout_of = admission.checkout_of
        self.revocation: Revocation | None = None
        self._commit = self._around_commit(engine.dialect.do_commit)
        self._rollback = self._around_rollback(engine.dialect.do_rollback)
        self._listeners = BoundedListeners(engine, admission.checkout_of, runner)

    def attach(self) -> None:
        """Replaces the methods."""
        self._listeners.attach()
        statements = Statements(self._dialect, self._admission, self._runner)
        self._replace("execution_ctx_cls", statements.context_class(self._dialect.execution_ctx_cls))
        for method in ("do_execute", "do_execute_no_params"):
            self._hook(method, statements.around)
        # ``many`` leaves the statement as it is: PyMySQL joins the rows only if it begins with INSERT.
        self._hook("do_executemany", partial(statements.around, many=True))
        self._replace("do_commit", self._around_commit_of_sqlalchemy)
        self._replace("do_rollback", self._rollback)
        phases = TwoPhase(self._dialect, self._admission, self._runner)
        self._hook("do_rollback_to_savepoint", around_rollback_to_savepoint)
        self._hook("do_prepare_twophase", phases.around_prepare)
        self._hook("do_commit_twophase", partial(phases.around_end, commit=True))
        self._hook("do_rollback_twophase", partial(phases.around_end, commit=False))
        bounded = partial(around_characteristic, admission=self._admission, runner=self._runner)
        for method in ("get_isolation_level", "set_isolation_level", "reset_isolation_level"):
            self._hook(method, bounded)
        if self._runner.sends_access_mode:
            for method in ("get_readonly", "get_deferrable", "set_deferrable"):
                self._hook(method, bounded)
            self._hook("set_readonly", partial(around_set_readonly, bounded=bounded, runner=self._runner))
        self._hook("do_ping", self._around_ping)
        self._hook("connect", self._around_connect)
        self._hook("do_terminate", partial(around_terminate, runner=self._runner))
        self._hook("do_close", partial(around_close, runner=self._runner))
        initialize = partial(around_initialize, runner=self._runner)
        self._hook("initialize", initialize)
        if hasattr(self._dialect, "_hstore_oids"):  # psycopg2's dialect runs it past its other methods
            self._hook("_hstore_oids", initialize)

    def detach(self) -> None:
        """Restores the dialect's own methods."""
        self._listeners.detach()
        for method in self._hooked:
            delattr(self._dialect, method)
        self._hooked.clear()

    def check_timeout(self, timeout: Any) -> float:
        """See ProxyWork."""
        return check_timeout(timeout)

    def allow(self, statement: Any, timeout: float | None) -> Any:
        """See ProxyWork."""
        if timeout is None and self._runner.lifts_backstop:
            timeout = self._runner.time_in_scope(None)
        if timeout is None or not isinstance(statement, str):
            return statement
        return self._runner.allow(statement, timeout)

    def run(
        self,
        fairy: Any,
        call: Callable[..., Any],
        args: Sequence[Any],
        timeout: float | None,
        *,
        proves: bool,
    ) -> Any:
        """See ProxyWork."""
        connection, checkout = dbapi_connection_of(fairy), self._checkout_of(fairy)
        if checkout is None or checkout.listener_limit is None:
            return self._runner.run(call, args, connection, checkout, timeout=timeout, proves=proves)
        work = partial(self._runner.run, call, args, connection, checkout, timeout=timeout, proves=proves)
        return self._listeners.outside_bracket(fairy, work)

    def commit(self, fairy: Any) -> None:
        """See ProxyWork."""
        self._listeners.outside_bracket(fairy, partial(self._commit, fairy))

    def rollback(self, fairy: Any) -> None:
        """See ProxyWork."""
        self._listeners.outside_bracket(fairy, partial(self._rollback, fairy))

    def end(
        self, fairy: Any, call: Callable[..., Any], args: Sequence[Any], *, commit: bool, ending: bool
    ) -> Any:
        """See ProxyWork."""
        target = (dbapi_connection_of(fairy), self._checkout_of(fairy))
        work = partial(self._runner.run, call, args, *target, commit=commit, ending=ending)
        return self._listeners.outside_bracket(fairy, work)

    def is_out_of_step(self, fairy: Any, error: BaseException) -> bool:
        """See ProxyWork."""
        checkout = self.checkout_of(fairy._connection_record)  # noqa: SLF001 - no public way
        return checkout is not None and self._runner.out_of_step(error, checkout)

    def bound_unwrapped(self, fairy: Any) -> None:
        """See ProxyWork."""
        checkout = self._checkout_of(fairy)
        if checkout is not None and checkout.hold is not None:
            checkout.hold.set_exempt(on=True)
        if checkout is not None and checkout.raw_limit is None:
            checkout.raw_limit = self._runner.limit_until_deadline(dbapi_connection_of(fairy), checkout)

    def finish(
        self, fairy: Any, close: Callable[..., Any], args: Sequence[Any], timeout: float | None
    ) -> Any:
        """See ProxyWork."""
        if revoked_connection_of(fairy) is not None:
            return self._runner.drop_cursor(close, args)
        checkout = self.checkout_of(fairy._connection_record)  # noqa: SLF001 - no public way
        return self._runner.finish(close, args, dbapi_connection_of(fairy), checkout, timeout)

    def checking_in(self, fairy: Any) -> Limit | None:
        """See ProxyWork."""
        record, connection = fairy._connection_record, dbapi_connection_of(fairy)  # noqa: SLF001 - no public way
        self._admission.bring_to_top(record, fairy)
        checkout = self.checkout_of(record)
        if checkout is None or connection is None:
            return None
        return self._runner.limit_check_in(connection, checkout)

    def checked_in(self, fairy: Any, record: Any, limit: Limit | None, error: BaseException | None) -> None:
        """See ProxyWork."""
        checkout = self.checkout_of(record)
        if error is not None and checkout is not None and checkout.is_of(fairy):
            # SQLAlchemy never returns the connection after a listener has raised.
            record.invalidate(error)
            fairy._pool._return_conn(record)  # noqa: SLF001 - no public way
            fairy.dbapi_connection = fairy._connection_record = None  # noqa: SLF001 - likewise
        if limit is None:
            return
        try:
            self._runner.end_limit(limit, error)
        except CallTimeoutError:
            if error is not None:  # otherwise SQLAlchemy has logged the error and dropped the connection
                raise

    def handle_error(self, context: ExceptionContext) -> None:
        """Turns the timeout of a listener into a `CallTimeoutError`. A stopped call costs one connection.

        By default SQLAlchemy also invalidates every idle connection.
        """
        error: BaseException = context.original_exception
        connection = context.connection
        fairy = None if connection is None else connection._dbapi_connection  # noqa: SLF001 - likewise
        revoked = None if fairy is None else revoked_connection_of(fairy)
        checkout = None if fairy is None or revoked is not None else self._checkout_of(fairy)
        try:
            if revoked is not None and context.sqlalchemy_exception is not None:
                raise revoked.error()  # the driver's error for a connection that was closed
            if checkout is not None:
                self._runner.end_bracket(checkout, error)
                if checkout.listening and not checkout.must_discard:
                    self._runner.open_bracket(dbapi_connection_of(fairy), checkout, None)
        except CallTimeoutError as late:
            error = late
            raise
        finally:
            if isinstance(error, CallTimeoutError) or revoked is not None:
                context.is_disconnect = True
                context.invalidate_pool_on_disconnect = False
            elif not context.is_disconnect and self._runner.out_of_step(error, checkout):
                context.is_disconnect = True
                context.invalidate_pool_on_disconnect = isinstance(error, OSError)  # a lost connection

    def _checkout_of(self, fairy: Any) -> DBAPICheckout | None:
        """Returns the checkout of a connection, None for one older than the guard; refuses a revoked one."""
        checkout = self.checkout_of(fairy._connection_record)  # noqa: SLF001 - no public way
        if checkout is None:
            refuse_revoked(fairy)
        return checkout

    def _hook(self, method: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._replace(method, around(getattr(self._dialect, method)))

    def _replace(self, name: str, ours: Any) -> None:
        self._hooked.append(name)
        setattr(self._dialect, name, ours)

    def _around_commit(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        run, checkout_of = self._runner.run, self._admission.checkout_of

        def commit(fairy: Any) -> Any:
            connection = dbapi_connection_of(fairy)
            checkout = checkout_of(fairy._connection_record)  # noqa: SLF001 - no public way
            if checkout is None:
                refuse_revoked(fairy)
            return run(original, (connection,), connection, checkout, commit=True)

        return commit

    def _around_commit_of_sqlalchemy(self, fairy: Any) -> Any:
        """Commits, and rolls back if the commit is refused.

        SQLAlchemy treats a transaction whose COMMIT has raised as ended, and returns its connection to the
        pool without a rollback. The next user of the connection would commit both transactions.
        """
        try:
            return self._commit(fairy)
        except RejectedError:
            self._rollback(fairy)
            raise

    def _around_rollback(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        run, checkout_of = self._runner.run, self._admission.checkout_of

        def rollback(fairy: Any) -> Any:
            # While SQLAlchemy initialises a new connection, it passes the driver's own.
            try:
                connection = get_dbapi_connection(fairy)
            except TypeError:
                connection = dbapi_connection_of(fairy)
            checkout = checkout_of(getattr(fairy, "_connection_record", None))
            try:
                if checkout is None:
                    refuse_revoked(fairy)
                return run(original, (connection,), connection, checkout, ending=True)
            except ConnectionRevokedError:
                return None  # it is rolled back: a block must end without an error

        return rollback

    def _around_ping(self, original: Callable[[Any], bool]) -> Callable[[Any], Any]:
        run, checkout_with = self._runner.run, self._admission.checkout_with

        def ping(connection: Any) -> Any:
            return run(original, (connection,), connection, checkout_with(connection), proves=False)

        return ping

    def _around_connect(self, original: Callable[..., Any]) -> Callable[..., Any]:
        connect = self._runner.connect

        def connect_within(*args: Any, **kwargs: Any) -> Any:
            second = second_connection_arguments(kwargs)
            if second is not None:
                return original(*args, **second)
            return connect(partial(original, *args), kwargs)

        return connect_within
