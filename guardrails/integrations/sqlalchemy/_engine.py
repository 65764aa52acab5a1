"""Attaching a guard to an engine and taking it off again."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from sqlalchemy import Dialect, Engine, event
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.util import await_only

from guardrails._dbapi.drivers import Driver, find_driver, unsupported
from guardrails._dbapi.runner import StatementRunner
from guardrails._guard.guard import Guard, attach, divide
from guardrails._guard.protect import unsuited
from guardrails._pool.limits import check_compartments, raises_as_driver, slots_for
from guardrails._util.checks import Faults, shown
from guardrails.errors import ConfigurationError
from guardrails.integrations.sqlalchemy._errors import DRIVER_ERRORS
from guardrails.integrations.sqlalchemy._hooks import Hooks
from guardrails.integrations.sqlalchemy._pool import Admission, capacity, guard_of
from guardrails.integrations.sqlalchemy._raw import guarded_proxy
from guardrails.integrations.sqlalchemy._second_connection import SecondConnection

__all__ = ["guard_engine"]

_LONGEST_NAME = 200
"""Characters that a guard's name may have."""

_ANSWERS = ("IntegrityError", "ProgrammingError", "DataError", "NotSupportedError")
"""Errors of the DBAPI that say something about the statement and prove that the database is alive."""


def guard_engine(
    engine: object,
    *,
    name: str | None = None,
    backstop: float | None = None,
    compartments: str = "auto",
    leak_after: float | None = 60.0,
    raise_as: str | None = None,
    **options: Any,
) -> Guard:
    """Attaches a guard to an engine; what `guardrails.protect` calls.

    Args:
        engine: An ``Engine`` or ``AsyncEngine``, or one made of it by ``execution_options()``.
        name: The guard's label; None takes the database's name, such as ``"orders"``, of a file that without
            its folder and ending, and where there is none the kind of database, such as ``"postgresql"``.
        backstop: Seconds after which the server ends a statement by itself, for the time when the network is
            cut and it cannot be told; must be above ``timeout``, and no statement can ask for more. None:
            four timeouts on MariaDB, whose statements can ask for more; PostgreSQL ends the statements of a
            client that is gone.
        compartments: ``"auto"``: each guarded function and each route gets one by itself, with a circuit of
            its own and not more than 70 % of the slots while another one is active. ``"declared"``: only
            those made with ``guard.compartment()``. ``"none"``: not even those.
        leak_after: Seconds after which a connection that is out and on which nothing runs is told of, in the
            log and as a `LeakFound`; None tells of none.
        raise_as: None: refusals and timeouts are this library's errors only. ``"driver"``: each
            is also a ``sqlalchemy.exc.OperationalError``, for code that handles that.
        **options: As for `Guard`. ``max_concurrent_calls`` defaults to what the pool can hold.

    Raises:
        ConfigurationError: The pool has no limit and none is given, the limit is above what the pool
            can hold, the driver's calls cannot be stopped, or the engine is guarded already.
    """
    sync_engine = getattr(engine, "sync_engine", engine)
    if not isinstance(sync_engine, Engine):
        raise unsuited(engine)
    dialect, pool = sync_engine.dialect, sync_engine.pool
    name = _name_of(sync_engine) if name is None else name
    if guard_of(pool) is not None:
        raise ConfigurationError(f"protect: this engine is guarded already, by {guard_of(pool)!r}")
    slots = slots_for(
        name, options.pop("max_concurrent_calls", None), capacity(pool), f"a {type(pool).__name__}"
    )
    how = check_compartments(name, compartments)
    as_driver = raises_as_driver(name, raise_as)
    _check_limit(name, "leak_after", leak_after)
    guard = Guard(name, max_concurrent_calls=slots, **options)
    if as_driver:
        guard.call_settings.gates[-1].errors = DRIVER_ERRORS
    driver = _driver_of(sync_engine, guard)
    if backstop is not None:
        _check_backstop(backstop, guard, driver)
    attachment = _EngineAttachment(sync_engine, guard, _runner(guard, driver, dialect, backstop), leak_after)
    divide(guard, how)
    attachment.attach()
    attach(guard, attachment)
    return guard


def _name_of(engine: Engine) -> str:
    """The database's name: two engines of one service are more often of one kind than of one database."""
    database = engine.url.database
    if not isinstance(database, str):
        return engine.dialect.name
    if engine.dialect.name == "sqlite":
        path = database.removeprefix("file:")
        database = "" if path.startswith(":memory:") else PurePath(path).stem
    return database[:_LONGEST_NAME] or engine.dialect.name


def _driver_of(engine: Engine, guard: Guard) -> Driver | None:
    """The driver that stops the engine's calls; None where they need not be."""
    dialect = engine.dialect
    named = getattr(dialect, "driver", None) or dialect.name  # a dialect of somebody's own may have none
    driver = find_driver(named, is_async=dialect.is_async)
    if driver is not None:
        driver.second = SecondConnection(engine)
    elif guard.timeout is not None:
        raise unsupported(named)
    return driver


def _runner(guard: Guard, driver: Driver | None, dialect: Dialect, backstop: float | None) -> StatementRunner:
    dbapi = dialect.dbapi  # a dialect of somebody's own may have none
    answers = [getattr(dbapi, answer, None) for answer in _ANSWERS]
    return StatementRunner(
        guard,
        driver,
        dialect.get_driver_connection,
        is_async=dialect.is_async,
        errors=(MissingGreenlet, *(answer for answer in answers if isinstance(answer, type))),
        backstop=backstop,
    )


def _check_backstop(backstop: float, guard: Guard, driver: Driver | None) -> None:
    where = f"guard {guard.name!r}"
    if driver is None or guard.timeout is None:
        raise ConfigurationError(f"{where}: a backstop needs a timeout")
    _check_limit(guard.name, "backstop", backstop)
    if backstop <= guard.timeout:
        raise ConfigurationError(
            f"{where}: backstop must be above the timeout of {guard.timeout:g} s, got {shown(backstop)}"
        )


def _check_limit(name: str, setting: str, seconds: float | None) -> None:
    faults = Faults(f"guard {shown(name)}")
    faults.seconds(setting, seconds, none=True)
    faults.raise_if_any()


class _EngineAttachment:
    """The hooks on one engine: the pool's class, the dialect's methods, one error listener."""

    def __init__(
        self, engine: Engine, guard: Guard, worker: StatementRunner, leak_after: float | None
    ) -> None:
        self._engine = engine
        self.most = capacity(engine.pool)
        wait = await_only if engine.dialect.is_async else None
        self._admission = Admission(guard, wait, leak_after)
        self._runner = worker
        self._hooks = Hooks(engine, self._admission, worker)

    def attach(self) -> None:
        self._admission.attach(self._engine.pool, guarded_proxy(self._hooks), self._runner)
        self._hooks.attach()
        event.listen(self._engine, "handle_error", self._hooks.handle_error)
        self._root = root = _root(self._engine)
        listened = "_has_events" in vars(root)
        event.listen(root, "engine_disposed", self._disposed)
        if not listened:  # or each statement asks for listeners; those of the class are asked for as ever
            del root._has_events  # noqa: SLF001 - no public way

    def _disposed(self, engine: Engine) -> None:
        self._admission.disposed(engine.pool)

    def detach(self) -> None:
        """See Attachment."""
        event.remove(self._root, "engine_disposed", self._disposed)
        event.remove(self._engine, "handle_error", self._hooks.handle_error)
        self._hooks.detach()
        self._admission.detach(self._engine.pool)


def _root(engine: Engine) -> Engine:
    """The engine that an engine with other execution options was made of."""
    while (proxied := getattr(engine, "_proxied", None)) is not None:
        engine = proxied
    return engine
