"""Attaches a guard to a pool of psycopg_pool and detaches it.

Depends on every other module of this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from guardrails._core.adaptive import Adaptive
from guardrails._dbapi.drivers.psycopg_pool import PooledPsycopg, PooledPsycopgAsync
from guardrails._dbapi.runner import as_it_is
from guardrails._dbapi.runner_on_loop import LoopRunner
from guardrails._guard.attachment import Upkeep
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
from guardrails._util.texts import with_article
from guardrails.errors import ConfigurationError
from guardrails.fleet._fleet import Budget, Verdict
from guardrails.fleet._joining import join_fleet
from guardrails.integrations.psycopg_pool._pool import PoolAdmission, guard_of
from guardrails.integrations.psycopg_pool._revoking import Revocation
from guardrails.integrations.psycopg_pool._server_question import know_sessions
from guardrails.integrations.psycopg_pool._upkeep import AsyncPsycopgPoolUpkeep, PsycopgPoolUpkeep

__all__ = ["guard_of_pool", "guard_pool"]

_SYSTEM = "postgresql"

_ANSWERS = (
    psycopg.IntegrityError,
    psycopg.ProgrammingError,
    psycopg.DataError,
    psycopg.NotSupportedError,
)
"""Errors about the statement: the database is alive, or was not asked."""


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
    """Attaches a guard to a pool of psycopg_pool; `guardrails.protect` calls it.

    Args:
        pool: A ``ConnectionPool``, ``NullConnectionPool``, ``AsyncConnectionPool`` or
            ``AsyncNullConnectionPool``, opened or not.
        name: The guard's label. None takes the name of the database; without it "postgresql".
        ask_server: As for an engine; see `guardrails.integrations.sqlalchemy.guard_engine`.
        compartments: As for an engine.
        fleet: As for an engine. Under a budget the pool needs ``min_size=0``.
        leak_after: As for an engine, in seconds.
        max_idle_hold: As for an engine, in seconds.
        **options: As for `Guard`. ``max_concurrent_calls`` defaults to the pool's ``max_size``, and follows
            its ``resize()``.

    Returns:
        The guard; ``guard.detach()`` removes it from the pool.

    Raises:
        ConfigurationError: The pool is closed or guarded already, the limit is above its size, or missing for
            a pool without one, it keeps connections that a budget does not allow, or an option is wrong.
    """
    if not isinstance(pool, ConnectionPool | AsyncConnectionPool):
        raise unsuited(pool)
    known: Any = pool
    name = _name_of(known) if name is None else name
    _check_pool(known, name)
    refuse_unknown_options(options, guard_pool)
    fill_pool_options(name, options)
    asked = options.pop("max_concurrent_calls", None)
    kind = with_article(type(pool).__name__)
    slots = slots_for(name, asked, pool.max_size or None, kind)
    check_leak_after(name, leak_after, max_idle_hold)
    asks = asks_server(name, ask_server)
    check_least(name, fleet, pool.min_size)
    if LifeSettings.taken_from(options, name, pool.max_size, kind).are_set:
        raise ConfigurationError(
            f"guard {shown(name)}: psycopg_pool looks after its idle connections; give it min_size, max_idle "
            "and max_lifetime, and leave out minimum_idle, idle_timeout, max_lifetime and keepalive here"
        )
    guard = Guard(name, max_concurrent_calls=slots, **options)
    most = asked.maximum if isinstance(asked, Adaptive) else asked
    attachment = _PoolAttachment(pool, guard, leak_after, max_idle_hold, most, asks=asks)
    set_compartments(guard, check_compartments(name, compartments))
    attachment.attach(fleet)
    attach(guard, attachment)
    return guard


def guard_of_pool(pool: object) -> Guard | None:
    """Returns the guard of a pool; None without one, or for another object."""
    return guard_of(pool) if isinstance(pool, ConnectionPool | AsyncConnectionPool) else None


def _check_pool(pool: Any, name: str) -> None:
    known = guard_of(pool)
    if known is not None:
        raise guarded_already("this pool", known)
    if pool.closed and pool._opened:  # noqa: SLF001 - no public way
        raise ConfigurationError(f"guard {shown(name)}: this pool of psycopg_pool is closed")


def _name_of(pool: Any) -> str:
    """Returns the name of the database."""
    database = None
    with suppress(Exception):  # psycopg will refuse it in its own words
        given = pool.kwargs if isinstance(pool.kwargs, dict) else {}
        said = pool.conninfo if isinstance(pool.conninfo, str) else ""
        database = given.get("dbname") or conninfo_to_dict(said).get("dbname")
    return database[:LONGEST_NAME] if isinstance(database, str) and database else _SYSTEM


class _PoolAttachment:
    """The hooks on one pool."""

    def __init__(
        self,
        pool: Any,
        guard: Guard,
        leak_after: float | None,
        max_idle_hold: float | None,
        asked: int | None,
        *,
        asks: bool,
    ) -> None:
        self._pool = pool
        is_async = isinstance(pool, AsyncConnectionPool)
        driver = PooledPsycopgAsync() if is_async else PooledPsycopg()
        runner = LoopRunner(guard, driver, as_it_is, is_async=is_async, errors=_ANSWERS)
        self._guard = guard
        self._admission = PoolAdmission(guard, pool, runner, leak_after, asked)
        runner.classifier.moved = self._admission.renew
        registry = self._admission.registry
        if max_idle_hold is not None:
            leave = self._admission.after_return
            self._admission.revocation = Revocation(registry, max_idle_hold, runner, leave)
        know_sessions(pool, driver, registry, asks=asks)

    @property
    def most(self) -> int | None:
        """See Attachment."""
        return self._pool.max_size or None

    @property
    def upkeep(self) -> Upkeep | None:
        """See Attachment. Without a budget psycopg_pool looks after its idle connections alone."""
        upkeep = self._admission.upkeep
        return None if upkeep is None or upkeep.lease is None else upkeep

    def attach(self, fleet: Budget | Verdict | None) -> None:
        """Begins to guard the pool."""
        self._join(fleet)
        self._admission.attach()

    def _join(self, fleet: Budget | Verdict | None) -> None:
        self._leave_fleet: Callable[[], object] = bool
        if fleet is None:
            return
        admission = self._admission
        is_async = isinstance(self._pool, AsyncConnectionPool)
        kind = AsyncPsycopgPoolUpkeep if is_async else PsycopgPoolUpkeep
        upkeep = kind(self._pool, self._guard)
        admission.lease, self._leave_fleet = join_fleet(fleet, self._guard, upkeep, admission.figures)
        if admission.lease is not None:
            admission.lease.count_with(upkeep.limit.count)
        admission.upkeep = upkeep

    def figures(self) -> PoolSnapshot:
        """See Attachment."""
        return self._admission.registry.figures.snapshot()

    def status(self) -> PoolStatus:
        """See Attachment."""
        return self._admission.registry.status()

    def detach(self) -> None:
        """See Attachment."""
        if self._admission.upkeep is not None:
            self._admission.upkeep.stop()
        self._leave_fleet()
        self._admission.detach()
