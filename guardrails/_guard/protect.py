"""`protect`: finds the integration for a live target. Must not import an integration before it is needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

from guardrails._util.texts import with_article
from guardrails.errors import ConfigurationError

if TYPE_CHECKING:
    from guardrails._guard.guard import Guard

__all__ = ["protect", "unsuited"]

_INTEGRATIONS = {
    "asyncpg": ("guardrails.integrations.asyncpg", "guard_pool"),
    "psycopg_pool": ("guardrails.integrations.psycopg_pool", "guard_pool"),
    "redis": ("guardrails.integrations.redis", "guard_client"),
    "sqlalchemy": ("guardrails.integrations.sqlalchemy", "guard_engine"),
}
"""The module and function that guard a target, by the top-level package of the target's class."""


def protect(target: object, *, name: str | None = None, **guard_options: Any) -> Guard:
    """Attaches a guard to a live engine, pool or Redis client. It covers all its users unchanged.

    Args:
        target: An ``Engine`` or ``AsyncEngine`` of SQLAlchemy; a pool of asyncpg or psycopg_pool; a
            ``Redis`` or ``RedisCluster`` of ``redis`` or ``redis.asyncio``.
        name: The guard's name; None takes the database's name, or "redis".
        **guard_options: As for `Guard`; ``max_concurrent_calls`` defaults to the pool's capacity. Further
            those of the target, which are arguments of ``guard_engine``, ``guard_client`` or ``guard_pool``.

    Returns:
        The guard. ``guard.detach()`` undoes it.

    Raises:
        ConfigurationError: The target cannot be guarded, is guarded already, or an option is wrong.
    """
    for cls in type(target).__mro__ if not isinstance(target, type) else ():
        package = cls.__module__.partition(".")[0]
        if package in _INTEGRATIONS:
            module, function = _INTEGRATIONS[package]
            attach = getattr(importlib.import_module(module), function)
            return cast("Guard", attach(target, name=name, **guard_options))
    raise unsuited(target)


def unsuited(target: object) -> ConfigurationError:
    """Builds the error for a target that cannot be guarded; it names what to pass instead."""
    cls = target if isinstance(target, type) else type(target)
    what = f"the class {cls.__name__}" if isinstance(target, type) else with_article(cls.__name__)
    packages = {each.__module__.partition(".")[0] for each in cls.__mro__}
    instead = (
        "give it a SQLAlchemy Engine or AsyncEngine, a pool of asyncpg or psycopg_pool or a Redis "
        "client, or use Guard() around the calls"
    )
    if "asyncpg" in packages:
        instead = "pass a pool, as asyncpg.create_pool() makes it"
    elif "psycopg" in packages:
        instead = "pass its pool, a ConnectionPool or AsyncConnectionPool of psycopg_pool"
    elif "redis" in packages:
        instead = "pass a client, a Redis of redis or redis.asyncio"
    elif "valkey" in packages:
        instead = "use redis-py, whose clients work with a Valkey server as well"
    elif packages & {"sqlalchemy", "flask_sqlalchemy", "sqlmodel"}:
        instead = "pass its engine"
        if "flask_sqlalchemy" in packages:
            instead = "pass its engine: db.engine, inside an application context"
        elif any(each.__name__ in {"Engine", "AsyncEngine"} for each in cls.__mro__):
            instead = "pass an engine that create_engine() has made"
    return ConfigurationError(f"protect: {what} cannot be guarded; {instead}")
