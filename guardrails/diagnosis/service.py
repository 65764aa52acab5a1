"""Finds what will go wrong with a service, from the settings in its process.

Depends on applications, engines, clients and their guards; must not connect to a server.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from guardrails._guard.guard import Guard
from guardrails.diagnosis.asking import OUR_ENGINE
from guardrails.diagnosis.django_settings import Databases, has_databases, middleware
from guardrails.diagnosis.findings import Finding
from guardrails.diagnosis.service_connections import budget, most_slots
from guardrails.diagnosis.settings import circuits, pools, stale, variables
from guardrails.diagnosis.surroundings import Surroundings

__all__ = ["examine"]

_GRACE = 1.0
"""Most seconds between a statement's deadline and the answer of its request."""


def examine(app: object, around: Surroundings) -> list[Finding]:
    """Returns the faults of an application and of all that its process has made so far.

    Args:
        app: The application, as a server gets it.
        around: Its surroundings.
    """
    django = Databases()
    targets: list[Target] = [*_targets(), *(("database", each, guard) for each, guard in django.guarded)]
    guards = list({id(guard): guard for _, _, guard in targets if guard is not None}.values())
    others = [each for each in _guards() if each not in guards]
    return [
        *_nothing_made(targets),
        *_unguarded(targets),
        *django.findings(),
        *_unanswered(app, guards),
        *(middleware() if guards or others else ()),
        *_unbounded(guards),
        *circuits([*guards, *others]),
        *variables(),
        *pools(targets),
        *_stale(targets, around),
        *_ladder(guards, around),
        *_threads(app, targets, around),
        *budget(targets, around),
    ]


def _guards() -> Iterator[Guard]:
    """All guards of the process but compartments, whose circuits open by rules of their own."""
    for each in gc.get_objects():
        if issubclass(type(each), Guard) and len(each.call_settings.gates) == 1:
            yield each


def _stale(targets: Iterable[Target], around: Surroundings) -> Iterator[Finding]:
    if around.address is not None and around.idle_timeout is not None:
        yield from stale(targets, around.address, around.idle_timeout)


Target = tuple[str, Any, Guard | None]
"""Its kind, the engine, client or Django database, and its guard."""


def _targets() -> Iterator[Target]:
    """The engines and clients of the process, one for each pool. None of them is called.

    An engine, its copies by ``execution_options()`` and other engines on its pool share connections.
    """
    kinds, seen = list(_kinds()), set()
    for each in gc.get_objects():
        for kind, cls, pool_of in kinds:
            if not issubclass(type(each), cls) or (kind == "engine" and _is_ours(each)):
                continue
            if id(pool := pool_of(each)) not in seen:
                seen.add(id(pool))
                yield kind, each, getattr(pool, "_guardrails", None)
    yield from _driver_pools()


def _driver_pools() -> Iterator[Target]:
    """The pools of asyncpg and psycopg_pool, but Django's, whose connections have a guard of their own."""
    kinds: list[tuple[type, Callable[[Any], Guard | None]]] = []
    if "asyncpg" in sys.modules:
        from asyncpg.pool import Pool  # noqa: PLC0415 - of the service

        from guardrails.integrations.asyncpg._attachment import guard_of_pool  # noqa: PLC0415 - with it

        kinds.append((Pool, guard_of_pool))
    if "psycopg_pool" in sys.modules:
        from psycopg_pool.base import BasePool  # noqa: PLC0415 - likewise

        from guardrails.integrations.psycopg_pool._attachment import guard_of_pool  # noqa: PLC0415

        kinds.append((BasePool, guard_of_pool))
    django = sys.modules.get("django.db.backends.postgresql.base")
    wrapper = None if django is None else django.DatabaseWrapper
    of_django = list(getattr(wrapper, "_connection_pools", {}).values())
    for each in gc.get_objects() if kinds else ():
        for cls, guard_of in kinds:
            if issubclass(type(each), cls) and not any(each is other for other in of_django):
                yield "pool", each, guard_of(each)


def _is_ours(engine: Any) -> bool:
    return OUR_ENGINE in engine.get_execution_options()


def _kinds() -> Iterator[tuple[str, type, Callable[[Any], object]]]:
    # Engines and clients exist only if the service has imported their library.
    if "sqlalchemy" in sys.modules:
        from sqlalchemy import Engine  # noqa: PLC0415 - of an extra

        yield "engine", Engine, lambda engine: engine.pool
    if "redis" in sys.modules:
        import redis  # noqa: PLC0415 - likewise

        for cls in (redis.Redis, redis.asyncio.Redis):
            yield "Redis client", cls, lambda client: getattr(client, "connection_pool", client)


def _nothing_made(targets: Iterable[Target]) -> Iterator[Finding]:
    if targets or any(True for _ in _guards()) or has_databases():
        return
    yield Finding(
        "nothing_made",
        "no engine, no pool and no Redis client was made, so that there was nothing to look at",
        (),
        "is the application made by a function (--factory)? An engine of the first request is made too late",
    )


def _unguarded(targets: Iterable[Target]) -> Iterator[Finding]:
    bare = [f"{kind} of {_name_of(target)}" for kind, target, guard in targets if guard is None]
    if bare:
        yield Finding(
            "unguarded",
            f"made and not protected: {len(bare)}",
            tuple(bare),
            "db = protect(engine), once, where it is made",
        )


def _name_of(target: Any) -> str:
    dialect = getattr(target, "dialect", None)
    return type(target).__module__.partition(".")[0] if dialect is None else str(dialect.name)


def _unanswered(app: object, guards: list[Guard]) -> Iterator[Finding]:
    if guards and _has_middleware(app) is False:
        yield Finding(
            "no_middleware",
            "refusals and timeouts become status 500: the application has no GuardrailsMiddleware",
            (),
            "app.add_middleware(GuardrailsMiddleware, guards=[...]); see docs/guides/frameworks.md",
        )


def _has_middleware(app: object) -> bool | None:
    """Returns None where it cannot be seen from outside."""
    if type(app).__module__.startswith("guardrails."):
        return True
    added = getattr(app, "user_middleware", None)  # Starlette, FastAPI
    if isinstance(added, list):
        return any(getattr(each.cls, "__module__", "").startswith("guardrails.") for each in added)
    extensions = getattr(app, "extensions", None)  # Flask
    return "guardrails" in extensions if isinstance(extensions, dict) else None


def _unbounded(guards: Iterable[Guard]) -> Iterator[Finding]:
    for guard in guards:
        if guard.timeout is None:
            yield Finding(
                "unbounded",
                f"guard {guard.name!a} has no timeout: a hung server holds its connections for ever",
                (),
                "protect(engine, timeout=5.0), or a deadline around every request",
            )


def _ladder(guards: Iterable[Guard], around: Surroundings) -> Iterator[Finding]:
    limit = around.worker_timeout
    for guard in guards:
        if limit is not None and guard.timeout is not None and guard.timeout + _GRACE >= limit:
            yield Finding(
                "ladder",
                f"guard {guard.name!a} gives a call {guard.timeout:g} s, a worker has {limit:g} s to live",
                (),
                "each limit must be below the one around it: statement, request, worker, load balancer",
            )


def _threads(app: object, targets: Iterable[Target], around: Surroundings) -> Iterator[Finding]:
    blocking = {
        guard: f"{guard.name!a}: {most_slots(guard)}"
        for kind, target, guard in targets
        if guard is not None and _takes_threads(app, kind, target)
    }
    slots = sum(map(most_slots, blocking))
    if slots >= around.threads:
        yield Finding(
            "threads",
            f"{slots} slots of synchronous databases can take all {around.threads} threads of a process",
            tuple(blocking.values()),
            "fewer slots (max_concurrent_calls=...) than the process has threads, or more threads",
        )


def _takes_threads(app: object, kind: str, target: Any) -> bool:
    """Whether calls of a target run in threads that all requests of the process share."""
    if kind == "database":  # under ASGI, Django has a thread for each request
        call = app if inspect.isfunction(app) else getattr(app, "__call__", None)  # noqa: B004 - see _service
        return not inspect.iscoroutinefunction(call)
    return kind == "engine" and not target.dialect.is_async
