"""Public functions about a pool: its status, its leaks, its size.

Depends on the holder registry; must not import statements.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from sqlalchemy import Engine

from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.holders import Holder, PoolStatus
from guardrails._pool.sizing import RESERVED, Demand, Fleet, wanted
from guardrails._util.checks import Faults, finite
from guardrails.errors import ConfigurationError
from guardrails.integrations.sqlalchemy._pool import registry_of

__all__ = ["PoolSettings", "leaks", "pool_status"]


def pool_status(engine: object) -> PoolStatus:
    """Returns who holds the connections of a guarded engine now, and why none is left.

    It reads the state of this process and sends nothing to the database, so it also answers in an outage.

    Args:
        engine: An ``Engine`` or ``AsyncEngine`` that was given to `guardrails.protect`.

    Raises:
        ConfigurationError: ``engine`` is not an engine, or is not guarded.
    """
    return _registry("pool_status", engine).status()


def leaks(engine: object, *, older_than: float | None = None) -> tuple[Holder, ...]:
    """Returns the holders of connections that look forgotten, those out longest first.

    A connection looks forgotten if its holder has ended, or if it has been out for ``older_than`` seconds and
    nothing runs on it.

    Args:
        engine: As for `pool_status`.
        older_than: Seconds; None takes the engine's ``leak_after``.

    Raises:
        ConfigurationError: ``engine`` is not a guarded engine, or ``older_than`` is not a number of seconds.
    """
    faults = Faults("leaks")
    faults.seconds("older_than", older_than, none=True, zero=True)
    faults.raise_if_any()
    return _registry("leaks", engine).forgotten(older_than)


def _registry(where: str, engine: object) -> HolderRegistry:
    sync_engine = getattr(engine, "sync_engine", engine)
    if not isinstance(sync_engine, Engine):
        raise ConfigurationError(f"{where}: expected an Engine or AsyncEngine, got {type(engine).__name__}")
    registry = registry_of(sync_engine.pool)
    if registry is None:
        raise ConfigurationError(f"{where}: this engine is not guarded; call protect(engine) first")
    return registry


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """The size of a pool, for ``create_engine``.

    ::

        engine = create_engine(url, **PoolSettings.for_load(rate=240, hold=0.05, workers=4).options())

    Attributes:
        pool_size: Connections that the pool keeps open.
        max_overflow: Additional connections that are opened under load and closed after use.
        pool_timeout: Seconds that the pool lets a caller wait. Under a guard they wait at the guard instead.
        pool_recycle: Age in seconds at which a connection is replaced on its next checkout; -1 is never.

    Raises:
        ConfigurationError: One or more settings are wrong; all are named at once.
    """

    pool_size: int
    max_overflow: int = 0
    pool_timeout: float = 30.0
    pool_recycle: float = -1

    def __post_init__(self) -> None:
        faults = Faults("PoolSettings")
        faults.count("pool_size", self.pool_size)
        faults.count("max_overflow", self.max_overflow, least=0)
        faults.seconds("pool_timeout", self.pool_timeout, zero=True)
        if self.pool_recycle != -1:
            faults.seconds("pool_recycle", self.pool_recycle)
        faults.raise_if_any()

    @classmethod
    def for_load(
        cls,
        *,
        rate: float,
        hold: float,
        target_wait: float = 0.05,
        workers: int = 1,
        max_connections: int | None = None,
        reserved: int = RESERVED,
    ) -> Self:
        """Returns the smallest pool that serves a load, as ``guardrails size`` does.

        Args:
            rate: Peak checkouts per second of all processes together.
            hold: Average seconds from checkout to check-in.
            target_wait: Maximum wait for a connection in seconds, for 99 % of the callers.
            workers: Number of processes, each with a pool of its own.
            max_connections: The server's limit; None checks none.
            reserved: Connections of the limit for superusers, migrations and other services.

        Raises:
            ConfigurationError: An argument is wrong, or the server's limit is too small.
        """
        fleet = Fleet(workers, max_connections, reserved)
        if not finite(rate):
            Demand(rate, hold, target_wait)  # raises the error; the rate per process would hide the value
        pool = wanted(Demand(rate / workers, hold, target_wait))
        if fleet.share is not None and pool.size > fleet.share:
            raise ConfigurationError(
                f"PoolSettings: {workers} x {pool.size} connections are needed, and each process can have "
                f"{fleet.share}: hold them for less time, run fewer processes, or put a pooler in between"
            )
        return cls(pool_size=pool.size)

    def options(self) -> dict[str, float]:
        """Returns the keyword arguments for ``create_engine`` or ``create_async_engine``."""
        return asdict(self)
