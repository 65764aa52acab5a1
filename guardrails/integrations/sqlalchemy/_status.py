"""What a person may ask of a pool: how it stands, what was forgotten, how large it should be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from sqlalchemy import Engine

from guardrails._pool.holders import Holder, PoolStatus
from guardrails._pool.sizing import RESERVED, Demand, Fleet, wanted
from guardrails._util.checks import Faults, finite
from guardrails.errors import ConfigurationError
from guardrails.integrations.sqlalchemy._holder_registry import HolderRegistry
from guardrails.integrations.sqlalchemy._pool import registry_of

__all__ = ["PoolSettings", "leaks", "pool_status"]


def pool_status(engine: object) -> PoolStatus:
    """Who has the connections of a guarded engine now, and why there is none left.

    It looks at the process alone and asks the database nothing, so it answers when nothing else does.

    Args:
        engine: An ``Engine`` or ``AsyncEngine`` that was given to `guardrails.protect`.

    Raises:
        ConfigurationError: It is not one, or nobody guards it.
    """
    sync_engine, registry = _registry("pool_status", engine)
    return registry.status(sync_engine.pool)


def leaks(engine: object, *, older_than: float | None = None) -> tuple[Holder, ...]:
    """The connections of a guarded engine that seem forgotten, those out longest first.

    Such is one whose holder has ended, and one that has been out for some time while nothing runs on it.

    Args:
        engine: As for `pool_status`.
        older_than: Seconds that are some time; None takes the ``leak_after`` that the engine is guarded with.

    Raises:
        ConfigurationError: It is no guarded engine, or ``older_than`` is not a number of seconds.
    """
    faults = Faults("leaks")
    faults.seconds("older_than", older_than, none=True, zero=True)
    faults.raise_if_any()
    _, registry = _registry("leaks", engine)
    return registry.forgotten(older_than)


def _registry(where: str, engine: object) -> tuple[Engine, HolderRegistry]:
    sync_engine = getattr(engine, "sync_engine", engine)
    if not isinstance(sync_engine, Engine):
        raise ConfigurationError(f"{where}: expected an Engine or AsyncEngine, got {type(engine).__name__}")
    registry = registry_of(sync_engine.pool)
    if registry is None:
        raise ConfigurationError(f"{where}: this engine is not guarded; call protect(engine) first")
    return sync_engine, registry


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """The size of a pool, for ``create_engine``.

    ::

        engine = create_engine(url, **PoolSettings.for_load(rate=240, hold=0.05, workers=4).options())

    Attributes:
        pool_size: Connections that are kept.
        max_overflow: Connections beyond these, opened and closed again under load.
        pool_timeout: Seconds the pool lets a caller wait. Under a guard nobody waits there.
        pool_recycle: Seconds after which a connection is replaced when it is next asked for; -1 is never.

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
        """The smallest pool that serves a load; what ``guardrails size`` advises.

        Args:
            rate: Checkouts per second at peak, all processes together.
            hold: Seconds a connection is held on average, from checkout to check-in.
            target_wait: Seconds that 99 % of the callers may wait for one at most.
            workers: Processes, each with a pool of its own.
            max_connections: What the server allows; None does not ask.
            reserved: Of these, what is kept for superusers, migrations and other services.

        Raises:
            ConfigurationError: An argument is wrong, or the server has not as many connections.
        """
        fleet = Fleet(workers, max_connections, reserved)
        if not finite(rate):
            Demand(rate, hold, target_wait)  # says what is wrong with it
        pool = wanted(Demand(rate / workers, hold, target_wait))
        if fleet.share is not None and pool.size > fleet.share:
            raise ConfigurationError(
                f"PoolSettings: {workers} x {pool.size} connections are needed, and each process can have "
                f"{fleet.share}: hold them for less time, run fewer processes, or put a pooler in between"
            )
        return cls(pool_size=pool.size)

    def options(self) -> dict[str, float]:
        """The arguments for ``create_engine`` or ``create_async_engine``."""
        return asdict(self)
