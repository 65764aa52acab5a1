"""Attaches a guard to an engine and detaches it. Depends on every other module of this folder."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from sqlalchemy import Dialect, Engine, Pool, event
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.util import await_only

from guardrails._core.adaptive import Adaptive
from guardrails._dbapi.drivers import Driver, find_driver, unsupported
from guardrails._dbapi.runner import StatementRunner
from guardrails._guard.compartments import set_compartments
from guardrails._guard.environment import fill_pool_options
from guardrails._guard.guard import Guard, attach
from guardrails._guard.pool_snapshot import PoolSnapshot
from guardrails._guard.protect import unsuited
from guardrails._pool.holders import PoolStatus
from guardrails._pool.life import LifeSettings
from guardrails._pool.limits import (
    asks_server,
    check_compartments,
    guarded_already,
    raises_as_driver,
    refuse_unknown_options,
    slots_for,
)
from guardrails._util.checks import Faults, shown
from guardrails._util.texts import with_article
from guardrails.errors import ConfigurationError, ConnectionRevokedError
from guardrails.fleet._fleet import Budget, Verdict
from guardrails.fleet._joining import join_fleet
from guardrails.integrations.sqlalchemy._connections import capacity, capacity_in_words
from guardrails.integrations.sqlalchemy._errors import DRIVER_ERRORS
from guardrails.integrations.sqlalchemy._errors import ConnectionRevokedError as DriverRevokedError
from guardrails.integrations.sqlalchemy._hooks import DialectHooks
from guardrails.integrations.sqlalchemy._pool import EngineAdmission, guard_of, registry_of
from guardrails.integrations.sqlalchemy._raw import guarded_proxy
from guardrails.integrations.sqlalchemy._revoking import Revocation
from guardrails.integrations.sqlalchemy._second_connection import SecondConnection
from guardrails.integrations.sqlalchemy._server_question import know_sessions
from guardrails.integrations.sqlalchemy._statements import check_names
from guardrails.integrations.sqlalchemy._upkeep import AsyncEngineUpkeep, EngineUpkeep, kept_idle

__all__ = ["guard_engine", "guard_of_engine"]

_MAX_NAME_LENGTH = 200
"""Maximum number of characters in a guard's name."""

_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}
"""OpenTelemetry's names of databases, where SQLAlchemy has another one."""

_STATEMENT_ERRORS = ("IntegrityError", "ProgrammingError", "DataError", "NotSupportedError")
"""DBAPI errors that are about the statement: the database has answered."""


def guard_engine(
    engine: object,
    *,
    name: str | None = None,
    ask_server: bool = True,
    backstop: float | None = None,
    compartments: str = "auto",
    fleet: Budget | Verdict | None = None,
    leak_after: float | None = 60.0,
    max_idle_hold: float | None = None,
    raise_as: str | None = None,
    **options: Any,
) -> Guard:
    """Attaches a guard to an engine; `guardrails.protect` calls it.

    Args:
        engine: An ``Engine`` or ``AsyncEngine``, or a copy of one made by ``execution_options()``.
        name: The guard's label. None takes the name of the database, such as ``"orders"``; for a file the
            name without folder and suffix; without either the kind of database, such as ``"postgresql"``.
        ask_server: Whether to ask the server, when the pool runs out, which sessions the connections wait
            for. That takes one connection of its own for up to a second, once in 30 s at most. The answer is
            in the log, in `pool_status` and on the status page. Likewise after a connection was taken back,
            whether its session has ended; if not, the server ends it. PostgreSQL, MariaDB and MySQL.
        backstop: Seconds after which the server ends a statement by itself, in case the network is cut and no
            cancel request reaches it. It must be above ``timeout``; no statement can ask for more. None takes
            four timeouts on MariaDB, where a statement can ask for more. PostgreSQL needs none: it ends the
            statements of a client that is gone.
        compartments: ``"auto"``: each guarded function and each route gets a compartment, with a circuit of
            its own and at most 70 % of the slots while another one is active. ``"declared"``: only
            ``guard.compartment()`` makes compartments. ``"none"``: there are no compartments.
        fleet: A budget of a `guardrails.fleet.Fleet`: the pool has at most as many connections open as its
            lease gives, and ``max_concurrent_calls`` is the most that it may be given. Or a verdict of one:
            the circuit opens and closes with those of the other workers; a budget has one, too.
        leak_after: Seconds after which a connection that is out, and on which nothing runs, is reported in
            the log and as a `LeakFound`. None reports none.
        max_idle_hold: Seconds for which nothing may run on a connection that is out. Then it is taken back:
            its transaction is rolled back, the pool has its place again, and the next statement of its holder
            raises `ConnectionRevokedError`. `guardrails.holding` exempts a block. None takes none back.
        raise_as: None: refusals and timeouts are only this library's errors. ``"driver"``: they are also
            instances of ``sqlalchemy.exc.OperationalError``.
        **options: As for `Guard`, and the pool's life: ``minimum_idle``, ``idle_timeout``, ``max_lifetime``
            and ``keepalive``; see `LifeSettings`. ``max_concurrent_calls`` defaults to the pool's capacity.

    Returns:
        The guard; ``guard.detach()`` removes it from the engine.

    Raises:
        ConfigurationError: The pool has no limit and none is given, the limit is above the pool's capacity,
            the driver's calls cannot be stopped, or the engine is guarded already.
    """
    sync_engine = getattr(engine, "sync_engine", engine)
    if not isinstance(sync_engine, Engine):
        raise unsuited(engine)
    pool, kind = sync_engine.pool, with_article(type(sync_engine.pool).__name__)
    name = _name_of(sync_engine) if name is None else name
    _check_unguarded(guard_of(pool))
    refuse_unknown_options(options, guard_engine)
    check_names(tuple(sync_engine.get_execution_options()))
    fill_pool_options(name, options)
    slots = _slots(name, options, pool, kind)
    as_driver, asks = raises_as_driver(name, raise_as), asks_server(name, ask_server)
    _check_limits(name, leak_after=leak_after, max_idle_hold=max_idle_hold)
    life = LifeSettings.taken_from(options, name, kept_idle(pool), kind)
    guard = Guard(name, max_concurrent_calls=slots, **options)
    if as_driver:
        guard.call_settings.gates[-1].errors = DRIVER_ERRORS
    driver = _driver_of(sync_engine, guard)
    runner = _runner(guard, driver, sync_engine.dialect, backstop)
    attachment = _EngineAttachment(sync_engine, guard, runner, life, leak_after)
    attachment.limit_idle_holds(max_idle_hold, as_driver=as_driver)
    set_compartments(guard, check_compartments(name, compartments))
    attachment.attach(fleet)
    if driver is not None and (registry := registry_of(pool)) is not None:
        know_sessions(sync_engine, driver, registry, asks=asks)
    attach(guard, attachment)
    return guard


def _slots(name: str, options: dict[str, Any], pool: Pool, kind: str) -> int | Adaptive:
    asked = options.pop("max_concurrent_calls", None)
    return slots_for(name, asked, capacity(pool), kind, capacity_in_words(pool))


def _check_unguarded(guard: Guard | None) -> None:
    if guard is not None:
        raise guarded_already("this engine", guard)


def guard_of_engine(engine: object) -> Guard | None:
    """Returns the guard of an engine; None without one, or for another object."""
    sync_engine = getattr(engine, "sync_engine", engine)
    return guard_of(sync_engine.pool) if isinstance(sync_engine, Engine) else None


def _name_of(engine: Engine) -> str:
    """Returns the name of the database.

    The kind of database is the second choice: the engines of one service often use the same kind.
    """
    database = engine.url.database
    if not isinstance(database, str):
        return engine.dialect.name
    if engine.dialect.name == "sqlite":
        path = database.removeprefix("file:")
        database = "" if path.startswith(":memory:") else PurePath(path).stem
    return database[:_MAX_NAME_LENGTH] or engine.dialect.name


def _driver_of(engine: Engine, guard: Guard) -> Driver | None:
    """Returns the driver that stops the engine's calls; None if there is no timeout and no known driver."""
    dialect = engine.dialect
    named = getattr(dialect, "driver", None) or dialect.name  # a third-party dialect may have none
    driver = find_driver(named, is_async=dialect.is_async)
    if driver is not None:
        driver.second = SecondConnection(engine)
    elif guard.timeout is not None:
        raise unsupported(named)
    return driver


def _runner(guard: Guard, driver: Driver | None, dialect: Dialect, backstop: float | None) -> StatementRunner:
    _check_backstop(backstop, guard, driver)
    dbapi = dialect.dbapi  # a third-party dialect may have none
    errors = [getattr(dbapi, name, None) for name in _STATEMENT_ERRORS]
    return StatementRunner(
        guard,
        driver,
        dialect.get_driver_connection,
        is_async=dialect.is_async,
        errors=(MissingGreenlet, *(error for error in errors if isinstance(error, type))),
        backstop=backstop,
    )


def _check_backstop(backstop: float | None, guard: Guard, driver: Driver | None) -> None:
    if backstop is None:
        return
    where = f"guard {guard.name!r}"
    if driver is None or guard.timeout is None:
        raise ConfigurationError(f"{where}: a backstop needs a timeout")
    _check_limits(guard.name, backstop=backstop)
    if backstop <= guard.timeout:
        raise ConfigurationError(
            f"{where}: backstop must be above the timeout of {guard.timeout:g} s, got {shown(backstop)}"
        )


def _check_limits(name: str, **limits: float | None) -> None:
    faults = Faults(f"guard {shown(name)}")
    for setting, seconds in limits.items():
        faults.seconds(setting, seconds, none=True)
    faults.raise_if_any()


class _EngineAttachment:
    """The hooks on one engine: the class of its pool, the methods of its dialect, two event listeners."""

    def __init__(
        self,
        engine: Engine,
        guard: Guard,
        runner: StatementRunner,
        life: LifeSettings,
        leak_after: float | None,
    ) -> None:
        self._engine = engine
        self._guard = guard
        self.upkeep = (AsyncEngineUpkeep if engine.dialect.is_async else EngineUpkeep)(
            engine, guard, life, runner
        )
        self.most = capacity(engine.pool)
        wait = await_only if engine.dialect.is_async else None
        self._admission = EngineAdmission(
            guard, wait, leak_after, _SYSTEMS.get(engine.dialect.name, engine.dialect.name)
        )
        self._admission.upkeep = self.upkeep
        self._runner = runner
        self._hooks = DialectHooks(engine, self._admission, runner)

    def limit_idle_holds(self, seconds: float | None, *, as_driver: bool) -> None:
        """Sets the limit for connections on which nothing runs; None sets none."""
        if seconds is not None:
            error = DriverRevokedError if as_driver else ConnectionRevokedError
            is_async = self._engine.dialect.is_async
            revocation = Revocation(self._admission.registry, seconds, error, is_async=is_async)
            revocation.attach(self._engine.pool, self._runner, self.upkeep)
            self._admission.revocation = self._hooks.revocation = revocation

    def attach(self, fleet: Budget | Verdict | None) -> None:
        figures = self._admission.registry.figures
        lease, self._leave_fleet = join_fleet(fleet, self._guard, self.upkeep, figures)
        self._admission.lease = lease
        self._admission.attach(self._engine.pool, guarded_proxy(self._hooks), self._runner)
        classifier = self._runner.classifier
        classifier.moved, classifier.suspect = self.upkeep.renew, self.upkeep.suspect
        self._hooks.attach()
        event.listen(self._engine, "handle_error", self._hooks.handle_error)
        self._root = root = _root(self._engine)
        had_events = "_has_events" in vars(root)
        event.listen(root, "engine_disposed", self._disposed)
        if not had_events:  # otherwise each statement would look for listeners; the class attribute stays
            del root._has_events  # noqa: SLF001 - no public way

    def _disposed(self, engine: Engine) -> None:
        # A lease counts all connections that are open: with one, each keeps its slot until it is closed.
        if self._admission.lease is None:
            self._admission.disposed(engine.pool)
        self.upkeep.life.acts = True  # what is out of the old pool is closed when it is returned
        self.upkeep.disposed()

    def figures(self) -> PoolSnapshot:
        """See `Attachment`."""
        return self._admission.registry.figures.snapshot()

    def status(self) -> PoolStatus:
        """See `Attachment`."""
        return self._admission.registry.status()

    def detach(self) -> None:
        """Removes the hooks; see `Attachment`."""
        self.upkeep.stop()
        self._leave_fleet()
        event.remove(self._root, "engine_disposed", self._disposed)
        event.remove(self._engine, "handle_error", self._hooks.handle_error)
        self._hooks.detach()
        self._admission.detach(self._engine.pool)


def _root(engine: Engine) -> Engine:
    """Returns the engine that ``execution_options()`` copied; an original engine is its own root."""
    while (proxied := getattr(engine, "_proxied", None)) is not None:
        engine = proxied
    return engine
