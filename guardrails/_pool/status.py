"""`pool_status`: finds the guard of a pool by its engine, client, alias or guard.

Knows names of modules and imports none early, as `guardrails._guard.protect`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from guardrails._guard.guard import Guard, attachment_of
from guardrails._pool.holders import PoolStatus
from guardrails._util.checks import shown
from guardrails.errors import ConfigurationError

__all__ = ["pool_status"]

_FINDERS = {
    "asyncpg": ("guardrails.integrations.asyncpg._attachment", "guard_of_pool"),
    "psycopg_pool": ("guardrails.integrations.psycopg_pool._attachment", "guard_of_pool"),
    "redis": ("guardrails.integrations.redis._client", "guard_of_client"),
    "sqlalchemy": ("guardrails.integrations.sqlalchemy._engine", "guard_of_engine"),
}
"""Top-level package of the target's class -> the function that finds its guard."""

_DJANGO = ("guardrails.integrations.django._database.registry", "guard_of_alias")


def pool_status(target: object) -> PoolStatus:
    """Returns the figures of a guarded pool, who holds its connections now, and why none is left.

    It reads the state of this process and sends nothing to the database, so it also answers in an outage.

    Args:
        target: A guarded ``Engine`` or ``AsyncEngine``; a guarded pool of asyncpg or psycopg_pool; a guarded
            ``redis.Redis`` or ``redis.asyncio.Redis``; the alias of a guarded database of Django's; or the
            guard of any of these.

    Raises:
        ConfigurationError: ``target`` is none of these, or is not guarded.
    """
    guard = target if isinstance(target, Guard) else _guard_of(target)
    attachment = None if guard is None else attachment_of(guard)
    if attachment is None:
        what = repr(target) if isinstance(target, Guard) else f"this {type(target).__name__}"
        raise ConfigurationError(
            f"pool_status: {what} is not guarded or has no pool; give it an engine or a client after "
            "protect(...), the alias of a guarded database, or the guard of one"
        )
    status: PoolStatus = attachment.status()
    return status


def _guard_of(target: object) -> Guard | None:
    if isinstance(target, str):
        try:
            return _find(*_DJANGO)(target)
        except ImportError as error:
            raise ConfigurationError("pool_status: an alias of a database needs Django") from error
    for cls in type(target).__mro__ if not isinstance(target, type) else ():
        package = cls.__module__.partition(".")[0]
        if package in _FINDERS:
            return _find(*_FINDERS[package])(target)
    raise ConfigurationError(
        f"pool_status: expected an engine, a Redis client, an alias or a guard, got {shown(target)}"
    )


def _find(module: str, function: str) -> Callable[[object], Guard | None]:
    finder: Callable[[object], Guard | None] = getattr(importlib.import_module(module), function)
    return finder
