"""Attaching a guard to an engine and taking it off again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.util import await_only

from guardrails._checks import Faults
from guardrails._guard import Guard, attach
from guardrails.errors import CallTimeoutError, ConfigurationError
from guardrails.integrations.sqlalchemy._drivers import find_driver, unsupported
from guardrails.integrations.sqlalchemy._pool import Admission, capacity, guard_of
from guardrails.integrations.sqlalchemy._work import Worker

__all__ = ["TIMEOUT_OPTION", "guard_engine"]

TIMEOUT_OPTION = "guardrails_timeout"
"""Execution option with the seconds one statement may take."""

_ANSWERS = ("IntegrityError", "ProgrammingError", "DataError", "NotSupportedError")
"""Errors of the DBAPI that say something about the statement and prove that the database is alive."""


def guard_engine(engine: object, *, name: str | None = None, **options: Any) -> Guard:
    """Attaches a guard to an engine; what `guardrails.protect` calls.

    Args:
        engine: An ``Engine`` or ``AsyncEngine``, or one made of it by ``execution_options()``.
        name: The guard's label; None takes the kind of database, such as ``"postgresql"``.
        **options: As for `Guard`. ``max_concurrent_calls`` defaults to what the pool can hold.

    Raises:
        ConfigurationError: The pool has no limit and none is given, the limit is above what the pool
            can hold, the driver's calls cannot be stopped, or the engine is guarded already.
    """
    sync_engine = getattr(engine, "sync_engine", engine)
    if not isinstance(sync_engine, Engine):
        raise ConfigurationError(
            f"guard_engine: expected an Engine or AsyncEngine, got {type(engine).__name__}"
        )
    dialect = sync_engine.dialect
    name = name or dialect.name
    if guard_of(sync_engine.pool) is not None:
        raise ConfigurationError(
            f"protect: this engine is guarded already, by {guard_of(sync_engine.pool)!r}"
        )
    slots = _slots(sync_engine, name, options.pop("max_concurrent_calls", None))
    guard = Guard(name, max_concurrent_calls=slots, **options)
    driver = find_driver(dialect.driver, is_async=dialect.is_async)
    if driver is None and guard.timeout is not None:
        raise unsupported(dialect.driver)
    dbapi = dialect.loaded_dbapi
    answers = tuple(getattr(dbapi, answer) for answer in _ANSWERS if hasattr(dbapi, answer))
    worker = Worker(guard, driver, is_async=dialect.is_async, errors=answers)
    attachment = _EngineAttachment(sync_engine, guard, worker)
    attachment.attach()
    attach(guard, attachment)
    return guard


def _slots(engine: Engine, name: str, asked: object) -> int:
    most = capacity(engine.pool)
    faults = Faults(f"guard {name!r}")
    faults.count("max_concurrent_calls", asked, none=True, most=most)
    faults.raise_if_any()
    if asked is not None:
        return cast("int", asked)
    if most is None:
        raise ConfigurationError(
            f"guard {name!r}: a {type(engine.pool).__name__} lets out any number of connections; "
            "say how many calls may run at once with max_concurrent_calls=..."
        )
    return most


class _EngineAttachment:
    """The hooks on one engine: the pool's class, the dialect's methods, one error listener."""

    def __init__(self, engine: Engine, guard: Guard, worker: Worker) -> None:
        self._engine = engine
        self._guard = guard
        self._worker = worker
        self._hooks: list[str] = []
        self.most = capacity(engine.pool)
        self._admission = Admission(guard, await_only if engine.dialect.is_async else None)

    def attach(self) -> None:
        engine, dialect = self._engine, self._engine.dialect
        self._admission.attach(engine.pool)
        for method in ("do_execute", "do_executemany", "do_execute_no_params"):
            # PyMySQL makes one INSERT of many only if the statement begins with the word.
            many = method == "do_executemany"
            self._hook(method, self._around_statement(getattr(dialect, method), many=many))
        self._hook("do_commit", self._around_end(dialect.do_commit, commit=True))
        self._hook("do_rollback", self._around_end(dialect.do_rollback, commit=False))
        self._hook("do_ping", self._around_ping(dialect.do_ping))
        self._hook("connect", self._around_connect(dialect.connect))
        event.listen(engine, "handle_error", _keep_the_others)

    def detach(self) -> None:
        """See Attachment."""
        event.remove(self._engine, "handle_error", _keep_the_others)
        for method in self._hooks:
            delattr(self._engine.dialect, method)
        self._admission.detach(self._engine.pool)

    def _hook(self, method: str, hook: Callable[..., Any]) -> None:
        self._hooks.append(method)
        setattr(self._engine.dialect, method, hook)

    def _around_statement(self, original: Callable[..., Any], *, many: bool) -> Callable[..., Any]:
        run, own = self._worker.run, self._engine.dialect.get_driver_connection
        checkout_of, allow = self._admission.checkout_of, self._worker.allow

        def execute(cursor: Any, *args: Any, **kwargs: Any) -> Any:
            # SQLAlchemy hands the execution context over as the last argument.
            context = kwargs["context"] if "context" in kwargs else args[-1]
            fairy = getattr(getattr(context, "root_connection", None), "_dbapi_connection", None)
            if fairy is None:
                return original(cursor, *args, **kwargs)
            timeout = _asked(context.execution_options.get(TIMEOUT_OPTION))
            if timeout is not None and not many:
                args = (allow(args[0], timeout), *args[1:])
            return run(
                lambda: original(cursor, *args, **kwargs),
                own(fairy.dbapi_connection),
                checkout_of(fairy._connection_record),  # noqa: SLF001 - no public way to the record
                timeout=timeout,
            )

        return execute

    def _around_end(self, original: Callable[[Any], Any], *, commit: bool) -> Callable[[Any], Any]:
        run, own = self._worker.run, self._engine.dialect.get_driver_connection
        checkout_of = self._admission.checkout_of

        def end(connection: Any) -> Any:
            return run(
                lambda: original(connection),
                own(getattr(connection, "dbapi_connection", connection)),
                checkout_of(getattr(connection, "_connection_record", None)),
                ending=not commit,
                commit=commit,
            )

        return end

    def _around_ping(self, original: Callable[[Any], bool]) -> Callable[[Any], bool]:
        run, own = self._worker.run, self._engine.dialect.get_driver_connection
        checkout_with = self._admission.checkout_with

        def ping(connection: Any) -> bool:
            answer: bool = run(lambda: original(connection), own(connection), checkout_with(connection))
            return answer

        return ping

    def _around_connect(self, original: Callable[..., Any]) -> Callable[..., Any]:
        connect = self._worker.connect

        def connect_within(*args: Any, **kwargs: Any) -> Any:
            return connect(partial(original, *args), kwargs)

        return connect_within


def _asked(timeout: Any) -> float | None:
    if timeout is None:
        return None
    faults = Faults("execution_options")
    faults.seconds(TIMEOUT_OPTION, timeout)
    faults.raise_if_any()
    return float(timeout)


def _keep_the_others(context: ExceptionContext) -> None:
    """A stopped call costs its own connection; by default SQLAlchemy would drop every idle one too."""
    if isinstance(context.original_exception, CallTimeoutError):
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
