"""Public functions about a pool: its status and its leaks.

Depends on the holder registry; must not import statements.
"""

from __future__ import annotations

from sqlalchemy import Engine

from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.holders import Holder, PoolStatus
from guardrails._util.checks import Faults
from guardrails.errors import ConfigurationError
from guardrails.integrations.sqlalchemy._pool import registry_of

__all__ = ["leaks", "pool_status"]


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
