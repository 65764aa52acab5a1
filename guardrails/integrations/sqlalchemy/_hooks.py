"""The methods of a dialect *instance* that a guard replaces. Knows what SQLAlchemy hands to each of them.

That costs under a microsecond a statement, where event listeners cost seven and never see a COMMIT, a
reset on return, a ping or a connect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlalchemy.engine import ExceptionContext

from guardrails._dbapi.runner import StatementRunner
from guardrails.errors import CallTimeoutError, RejectedError
from guardrails.integrations.sqlalchemy._listeners import Listeners
from guardrails.integrations.sqlalchemy._pool import Admission
from guardrails.integrations.sqlalchemy._raw import get_held, held
from guardrails.integrations.sqlalchemy._second_connection import redirected
from guardrails.integrations.sqlalchemy._statements import Statements, checked
from guardrails.integrations.sqlalchemy._two_phase import TwoPhase

if TYPE_CHECKING:
    from guardrails._dbapi.checkout import DBAPICheckout
    from guardrails._dbapi.stopping import Limit

__all__ = ["Hooks"]


class Hooks:
    """Puts work of a dialect through a worker.

    Args:
        engine: Whose dialect it is.
        admission: Knows which checkout a connection is in.
        worker: Runs the work.
    """

    def __init__(self, engine: Engine, admission: Admission, worker: StatementRunner) -> None:
        self._dialect = engine.dialect
        self._admission = admission
        self._runner = worker
        self._hooked: list[str] = []
        self.checkout_of = admission.checkout_of
        self._commit = self._around_commit(engine.dialect.do_commit)
        self._rollback = self._around_rollback(engine.dialect.do_rollback)
        self._listeners = Listeners(engine, admission.checkout_of, worker)

    def attach(self) -> None:
        """Replaces the methods."""
        self._listeners.attach()
        statements = Statements(self._dialect, self._admission, self._runner)
        self._replace("execution_ctx_cls", statements.contexts(self._dialect.execution_ctx_cls))
        for method in ("do_execute", "do_execute_no_params"):
            self._hook(method, statements.around)
        # PyMySQL makes one INSERT of many only if the statement begins with the word.
        self._hook("do_executemany", partial(statements.around, many=True))
        self._replace("do_commit", self._around_commit_of_sqlalchemy)
        self._replace("do_rollback", self._rollback)
        phases = TwoPhase(self._dialect, self._admission, self._runner)
        self._hook("do_prepare_twophase", phases.around_prepare)
        self._hook("do_commit_twophase", partial(phases.around_end, commit=True))
        self._hook("do_rollback_twophase", partial(phases.around_end, commit=False))
        for method in ("get_isolation_level", "set_isolation_level", "reset_isolation_level"):
            self._hook(method, self._around_isolation_level)
        self._hook("do_ping", self._around_ping)
        self._hook("connect", self._around_connect)
        self._hook("initialize", self._around_questions)
        if hasattr(self._dialect, "_hstore_oids"):  # what psycopg2's dialect asks behind its own back
            self._hook("_hstore_oids", self._around_questions)

    def detach(self) -> None:
        """Brings the dialect's own methods back."""
        self._listeners.detach()
        for method in self._hooked:
            delattr(self._dialect, method)
        self._hooked.clear()

    def check_timeout(self, timeout: Any) -> float:
        """See ProxyWork."""
        return checked(timeout)

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
        kwargs: Mapping[str, Any],
        timeout: float | None,
        *,
        proves: bool,
    ) -> Any:
        """See ProxyWork."""
        if kwargs:
            call = partial(call, **kwargs)
        connection, checkout = held(fairy), self._checkout_of(fairy)
        if checkout is None or checkout.bracket is None:
            return self._runner.run(call, args, connection, checkout, timeout=timeout, proves=proves)
        work = partial(self._runner.run, call, args, connection, checkout, timeout=timeout, proves=proves)
        return self._listeners.apart(fairy, work)

    def commit(self, fairy: Any) -> None:
        """See ProxyWork."""
        self._listeners.apart(fairy, partial(self._commit, fairy))

    def rollback(self, fairy: Any) -> None:
        """See ProxyWork."""
        self._listeners.apart(fairy, partial(self._rollback, fairy))

    def end(
        self, fairy: Any, call: Callable[..., Any], args: Sequence[Any], *, commit: bool, ending: bool
    ) -> Any:
        """See ProxyWork."""
        target = (held(fairy), self._checkout_of(fairy))
        work = partial(self._runner.run, call, args, *target, commit=commit, ending=ending)
        return self._listeners.apart(fairy, work)

    def lend(self, fairy: Any) -> None:
        """See ProxyWork."""
        checkout = self._checkout_of(fairy)
        if checkout is not None and checkout.lent is None:
            checkout.lent = self._runner.lend(held(fairy))

    def finish(
        self, fairy: Any, close: Callable[..., Any], args: Sequence[Any], timeout: float | None
    ) -> Any:
        """See ProxyWork."""
        return self._runner.bounds(close, args, held(fairy), timeout)

    def checking_in(self, fairy: Any) -> Limit | None:
        """See ProxyWork."""
        record, connection = fairy._connection_record, held(fairy)  # noqa: SLF001 - no public way
        self._admission.put_on_top(record, fairy)
        checkout = self.checkout_of(record)
        if checkout is None or connection is None:
            return None
        return self._runner.watch_check_in(connection, checkout)

    def checked_in(self, fairy: Any, record: Any, limit: Limit | None, error: BaseException | None) -> None:
        """See ProxyWork."""
        checkout = self.checkout_of(record)
        if error is not None and checkout is not None and checkout.is_of(fairy):
            # SQLAlchemy leaves it out for ever when a listener raises.
            record.invalidate(error)
            fairy._pool._return_conn(record)  # noqa: SLF001 - no public way
            fairy.dbapi_connection = fairy._connection_record = None  # noqa: SLF001 - likewise
        if limit is None:
            return
        try:
            self._runner.settle(limit, error)
        except CallTimeoutError:
            if error is not None:  # else SQLAlchemy has logged what came of it, and dropped the connection
                raise

    def handle_error(self, context: ExceptionContext) -> None:
        """Makes the timeout of a listener's work one of ours; a stopped call costs its own connection alone.

        By default SQLAlchemy would drop every idle one, too.
        """
        error: BaseException = context.original_exception
        connection = context.connection
        fairy = None if connection is None else connection._dbapi_connection  # noqa: SLF001 - likewise
        checkout = None if fairy is None else self._checkout_of(fairy)
        try:
            if checkout is not None:
                self._runner.end_bracket(checkout, error)
                if checkout.listening and not checkout.must_discard:
                    self._runner.open_bracket(held(fairy), checkout, None)
        except CallTimeoutError as late:
            error = late
            raise
        finally:
            if isinstance(error, CallTimeoutError):
                context.is_disconnect = True
                context.invalidate_pool_on_disconnect = False

    def _checkout_of(self, fairy: Any) -> DBAPICheckout | None:
        return self.checkout_of(fairy._connection_record)  # noqa: SLF001 - no public way

    def _hook(self, method: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._replace(method, around(getattr(self._dialect, method)))

    def _replace(self, name: str, ours: Any) -> None:
        self._hooked.append(name)
        setattr(self._dialect, name, ours)

    def _around_commit(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        run, checkout_of = self._runner.run, self._admission.checkout_of

        def commit(fairy: Any) -> Any:
            connection = held(fairy)
            record = fairy._connection_record  # noqa: SLF001 - no public way
            return run(original, (connection,), connection, checkout_of(record), commit=True)

        return commit

    def _around_commit_of_sqlalchemy(self, fairy: Any) -> Any:
        """Commits, and rolls back if that is refused.

        SQLAlchemy takes a transaction for ended whose COMMIT has raised, and gives its connection back as it
        is: whoever has it next would commit both.
        """
        try:
            return self._commit(fairy)
        except RejectedError:
            self._rollback(fairy)
            raise

    def _around_isolation_level(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Bounds the calls that read or set an isolation level; resetting it is a part of a check-in."""
        run, checkout_with = self._runner.run, self._admission.checkout_with

        def bounded(connection: Any, *args: Any, **kwargs: Any) -> Any:
            call, checkout = partial(original, connection, **kwargs), checkout_with(connection)
            try:
                return run(call, args, connection, checkout, ending=True)
            except BaseException as error:
                # SQLAlchemy does not ask what became of the connection; nor does it give it back.
                stopped = isinstance(error, CallTimeoutError) or not isinstance(error, Exception)
                if stopped and checkout is not None and checkout.proxy is not None:
                    proxy: Any = checkout.proxy()
                    if proxy is not None and proxy.is_valid and not checkout.checking_in:
                        proxy.invalidate(error)
                raise

        return bounded

    def _around_rollback(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        run, checkout_of = self._runner.run, self._admission.checkout_of

        def rollback(fairy: Any) -> Any:
            # The driver's own comes from what SQLAlchemy asks a new connection.
            try:
                connection = get_held(fairy)
            except TypeError:
                connection = held(fairy)
            record = getattr(fairy, "_connection_record", None)
            return run(original, (connection,), connection, checkout_of(record), ending=True)

        return rollback

    def _around_ping(self, original: Callable[[Any], bool]) -> Callable[[Any], Any]:
        run, checkout_with = self._runner.run, self._admission.checkout_with

        def ping(connection: Any) -> Any:
            return run(original, (connection,), connection, checkout_with(connection), proves=False)

        return ping

    def _around_connect(self, original: Callable[..., Any]) -> Callable[..., Any]:
        connect = self._runner.connect

        def connect_within(*args: Any, **kwargs: Any) -> Any:
            second = redirected(kwargs)
            if second is not None:
                return original(*args, **second)
            return connect(partial(original, *args), kwargs)

        return connect_within

    def _around_questions(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """What a dialect asks the first connection, some of it past its own hooks."""
        bounds, questioned = self._runner.bounds, self._runner.questioned

        def ask(connection: Any) -> Any:
            fairy = getattr(connection, "connection", None)  # SQLAlchemy's connection, or the driver's
            asked = held(fairy) if fairy else connection
            questioned.append(asked)
            try:
                return bounds(original, (connection,), asked)
            finally:
                questioned.remove(asked)

        return ask
