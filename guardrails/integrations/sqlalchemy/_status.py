"""The forgotten connections of an engine. Depends on the holder registry; must not import statements."""

from __future__ import annotations

from sqlalchemy import Engine

from guardrails._pool.holder_registry import HolderRegistry
from guardrails._pool.holders import Holder
from guardrails._util.checks import Faults
from guardrails.errors import ConfigurationError
from guardrails.integrations.sqlalchemy._pool import registry_of

__all__ = ["leaks"]


def leaks(engine: object, *, older_than: float | None = None) -> tuple[Holder, ...]:
    """Returns the holders of connections that look forgotten, those out longest first.

    A connection looks forgotten if its holder has ended, or if it has been held for ``older_than`` seconds
    and nothing runs on it.

    Args:
        engine: An ``Engine`` or ``AsyncEngine`` that was given to `guardrails.protect`.
        older_than: Seconds; None takes the engine's ``leak_after``.

    Raises:
        ConfigurationError: ``engine`` is not a guarded engine, or ``older_than`` is not a number of seconds.
    """
    faults = Faults("leaks")
    faults.seconds("older_than", older_than, none=True, zero=True)
    faults.raise_if_any()
    return _registry(engine).forgotten(older_than)


def _registry(engine: object) -> HolderRegistry:
    sync_engine = getattr(engine, "sync_engine", engine)
    if not isinstance(sync_engine, Engine):
        raise ConfigurationError(f"leaks: expected an Engine or AsyncEngine, got {type(engine).__name__}")
    registry = registry_of(sync_engine.pool)
    if registry is None:
        raise ConfigurationError("leaks: this engine is not guarded; call protect(engine) first")
    return registry
