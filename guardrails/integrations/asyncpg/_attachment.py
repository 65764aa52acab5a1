"""Attaches a guard to a pool of asyncpg and detaches it. Depends on every other module of this folder."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
from asyncpg.pool import Pool

from guardrails._dbapi.drivers.asyncpg import Asyncpg
from guardrails._dbapi.runner import as_it_is
from guardrails._dbapi.runner_on_loop import LoopRunner
from guardrails._guard.compartments import set_compartments
from guardrails._guard.environment import fill_pool_options
from guardrails._guard.guard import Guard, attach
from guardrails._guard.guard_settings import LONGEST_NAME
from guardrails._guard.pool_snapshot import PoolSnapshot
from guardrails._guard.protect import unsuited
from guardrails._pool.holders import PoolStatus
from guardrails._pool.life import LifeSettings
from guardrails._pool.limits import (
    asks_server,
    check_compartments,
    check_leak_after,
    check_least,
    guarded_already,
    refuse_unknown_options,
    slots_for,
)
from guardrails._util.checks import shown
from guardrails.errors import ConfigurationError
from guardrails.fleet._fleet import Budget, Verdict
from guardrails.fleet._joining import join_fleet
from guardrails.integrations.asyncpg._pool import PoolAdmission, guard_of
from guardrails.integrations.asyncpg._revoking import Revocation
from guardrails.integrations.asyncpg._server_question import know_sessions
from guardrails.integrations.asyncpg._upkeep import AsyncpgUpkeep

__all__ = ["guard_of_pool", "guard_pool"]

_SYSTEM = "postgresql"


def guard_pool(
    pool: object,
    *,
    name: str | None = None,
    ask_server: bool = True,
    compartments: str = "auto",
    fleet: Budget | Verdict | None = None,
    leak_after: float | None = 60.0,
    max_idle_hold: float | None = None,
    **options: Any,
) -> Guard:
    """Attaches a guard to a pool of asyncpg; `guardrails.protect` calls it.

    Args:
        pool: A pool that ``create_pool()`` has made, opened or not.
        name: The guard's label. None takes the name of the database; without it "postgresql".
        ask_server: As for an engine; see `guardrails.integrations.sqlalchemy.guard_engine`.
        compartments: As for an engine.
        fleet: As for an engine. Under a budget the pool needs ``min_size=0``.
        leak_after: As for an engine, in seconds.
        max_idle_hold: As for an engine, in seconds. A connection that listens is not taken back.
        **options: As for `Guard`, and the pool's life: ``minimum_idle``, ``idle_timeout``, ``max_lifetime``
            and ``keepalive``; see `LifeSettings`. ``max_concurrent_calls`` defaults to the size of the pool.

    Returns:
        The guard; ``guard.detach()`` removes it from the pool.

    Raises:
        ConfigurationError: The pool is closed, is guarded already or belongs to another event loop, the limit
            is above its size, it keeps connections that a budget does not allow, or an option is wrong.
    """
    if not isinstance(pool, Pool):
        raise unsuited(pool)
    name = _name_of(pool) if name is None else name
    _check_pool(pool, name)
    refuse_unknown_options(options, guard_pool)
    fill_pool_options(name, options)
    size = pool.get_max_size()
    slots = slots_for(name, options.pop("max_concurrent_calls", None), size, "a pool of asyncpg")
    check_leak_after(name, leak_after, max_idle_hold)
    asks = asks_server(name, ask_server)
    check_least(name, fleet, pool.get_min_size())
    life = LifeSettings.taken_from(options, name, size, "a pool of asyncpg")
    guard = Guard(name, max_concurrent_calls=slots, **options)
    attachment = _PoolAttachment(pool, guard, life, leak_after, max_idle_hold, asks=asks)
    set_compartments(guard, check_compartments(name, compartments))
    attachment.attach(fleet)
    attach(guard, attachment)
    return guard


def guard_of_pool(pool: object) -> Guard | None:
    """Returns the guard of a pool; None without one, or for another object."""
    return guard_of(pool) if isinstance(pool, Pool) else None


def _check_pool(pool: Any, name: str) -> None:
    known = guard_of(pool)
    if known is not None:
        raise guarded_already("this pool", known)
    if not hasattr(pool, "_connect") or not hasattr(pool, "is_closing"):
        raise ConfigurationError("protect: a pool of asyncpg needs asyncpg 0.30 or later")
    if pool.is_closing():
        raise ConfigurationError(f"guard {shown(name)}: this pool of asyncpg is closed or closing")
    if pool._initializing:  # noqa: SLF001 - no public way
        raise ConfigurationError(
            f"guard {shown(name)}: this pool of asyncpg is being opened; protect it before or after that"
        )
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return
    if running is not pool._loop:  # noqa: SLF001 - likewise
        raise ConfigurationError(
            f"guard {shown(name)}: this pool of asyncpg belongs to another event loop; protect it there"
        )


def _name_of(pool: Any) -> str:
    """Returns the name of the database."""
    database = pool._connect_kwargs.get("database")  # noqa: SLF001 - no public way
    for holder in pool._holders:  # noqa: SLF001 - likewise
        if not database and holder.is_connected():
            database = holder._con._params.database  # noqa: SLF001 - likewise
    if not database:
        dsn = next(iter(pool._connect_args), None) or pool._connect_kwargs.get("dsn")  # noqa: SLF001 - likewise
        database = unquote(urlsplit(dsn).path.lstrip("/")) if isinstance(dsn, str) else None
    return database[:LONGEST_NAME] if isinstance(database, str) and database else _SYSTEM


class _PoolAttachment:
    """The hooks on one pool."""

    def __init__(
        self,
        pool: Any,
        guard: Guard,
        life: LifeSettings,
        leak_after: float | None,
        max_idle_hold: float | None,
        *,
        asks: bool,
    ) -> None:
        self._pool = pool
        self._guard = guard
        driver = Asyncpg()
        runner = LoopRunner(guard, driver, as_it_is, is_async=True, errors=(asyncpg.InterfaceError,))
        self.upkeep = AsyncpgUpkeep(pool, guard, life, runner)
        runner.classifier.moved, runner.classifier.suspect = self.upkeep.renew, self.upkeep.suspect
        self._admission = PoolAdmission(guard, pool, runner, leak_after)
        registry, holders = self._admission.registry, self._admission.connection_holders
        holders.upkeep = self.upkeep
        if max_idle_hold is not None:
            holders.revocation = Revocation(registry, holders.out, max_idle_hold, runner, pool)
        know_sessions(pool, driver, registry, holders.out, asks=asks)

    @property
    def most(self) -> int | None:
        """See Attachment."""
        size: int = self._pool.get_max_size()
        return size

    def attach(self, fleet: Budget | Verdict | None) -> None:
        """Begins to guard the pool."""
        figures = self._admission.registry.figures
        self._admission.lease, self._leave_fleet = join_fleet(fleet, self._guard, self.upkeep, figures)
        self._admission.attach()

    def figures(self) -> PoolSnapshot:
        """See Attachment."""
        return self._admission.registry.figures.snapshot()

    def status(self) -> PoolStatus:
        """See Attachment."""
        return self._admission.registry.status()

    def detach(self) -> None:
        """See Attachment."""
        self.upkeep.stop()
        self._leave_fleet()
        self._admission.detach()
