"""Finds settings of circuits and pools that cannot work as their author means them.

Depends on guards, and on the pools of libraries that the service has imported; must not connect to a server.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from guardrails._guard.environment import unused_variables
from guardrails._guard.guard import Guard, attachment_of
from guardrails.diagnosis.findings import Finding
from guardrails.diagnosis.service_connections import most_slots

__all__ = ["circuits", "pools", "stale", "variables"]

_UNLIMITED = 2**31
"""redis-py's ``max_connections`` for any number, before version 8."""


def circuits(guards: Iterable[Guard]) -> Iterator[Finding]:
    """Yields guards whose circuits slow calls can never open."""
    for guard in guards:
        policy, timeout = guard.call_settings.policy, guard.timeout
        if policy is None or timeout is None:
            continue
        slow = policy.slow_call_duration_threshold
        if slow >= timeout:
            yield Finding(
                "circuit",
                f"guard {guard.name!a} calls a call slow after {slow:g} s, and stops it after {timeout:g} s: "
                "its circuit never opens for slow calls",
                (),
                "slow_call_duration_threshold below the timeout, a third of it or less",
            )
        slots = most_slots(guard)
        window = policy.sliding_window_size if policy.sliding_window_type == "time" else math.inf
        if window == math.inf or policy.consecutive_failures is not None:
            continue
        most = slots * (math.floor(window / timeout) + 1)
        if policy.minimum_number_of_calls > most:
            yield Finding(
                "circuit",
                f"guard {guard.name!a} judges from {policy.minimum_number_of_calls} calls in {window:g} s, "
                f"and its {slots} slots can make {most} that take the whole timeout of {timeout:g} s: "
                "their rates never open its circuit",
                (),
                f"minimum_number_of_calls of {most} or less, a longer window, or consecutive_failures",
            )


def variables() -> Iterator[Finding]:
    """Yields the variables of the environment that set something of a guard that was not made."""
    if unused := unused_variables():
        yield Finding(
            "variable",
            f"variables of the environment without effect, as no guard of this process has their name: "
            f"{len(unused)}",
            tuple(unused),
            "correct the name; one for a guard of another process, or made later, may stay",
        )


def pools(targets: Iterable[tuple[str, Any, Guard | None]]) -> Iterator[Finding]:
    """Yields pools without a limit, and engines without a pool.

    Args:
        targets: Each with its kind, the engine or client, and its guard.
    """
    for kind, target, guard in targets:
        name = "not protected" if guard is None else f"guard {guard.name!a}"
        if kind == "engine":
            yield from _engine(target, name)
        elif getattr(getattr(target, "connection_pool", None), "max_connections", 0) >= _UNLIMITED:
            yield _unlimited("the pool of a Redis client", name, "max_connections=...")


def _engine(engine: Any, name: str) -> Iterator[Finding]:
    from sqlalchemy.pool import NullPool, QueuePool  # noqa: PLC0415 - there is an engine

    from guardrails.integrations.sqlalchemy._connections import capacity  # noqa: PLC0415 - likewise

    if isinstance(engine.pool, NullPool):
        yield Finding(
            "null_pool",
            f"an engine of {engine.dialect.name} ({name}) has a NullPool: each checkout opens a connection",
            (),
            "leave poolclass out; a NullPool is right in front of a pooler such as pgbouncer, and only there",
        )
    elif isinstance(engine.pool, QueuePool) and capacity(engine.pool) is None:
        yield _unlimited(f"the pool of an engine of {engine.dialect.name}", name, "max_overflow=10")


def _unlimited(what: str, name: str, setting: str) -> Finding:
    return Finding(
        "unlimited",
        f"{what} ({name}) has no limit: in an outage it opens as many connections as there are callers",
        (),
        f"{setting}; a guard limits the calls, until it is switched off or removed",
    )


def stale(
    targets: Iterable[tuple[str, Any, Guard | None]], address: Any, seconds: float
) -> Iterator[Finding]:
    """Yields engines that keep connections for longer than their server does.

    Args:
        targets: See `pools`.
        address: The server's URL, as SQLAlchemy has it.
        seconds: Seconds after which the server closes an idle connection.
    """
    engines = [(target, guard) for kind, target, guard in targets if kind == "engine"]
    same_kind = [each for each in engines if _kind(each[0].url) == _kind(address)]
    place = (address.host, address.port)
    same_place = [each for each in same_kind if (each[0].url.host, each[0].url.port) == place]
    for engine, guard in same_place or same_kind:
        pool = engine.pool
        kept = min(_kept_idle(pool, guard), default=math.inf)
        if getattr(pool, "_pre_ping", False) or kept < seconds or not hasattr(pool, "checkedin"):
            continue
        yield Finding(
            "stale",
            f"an engine of {engine.dialect.name} keeps idle connections "
            f"{'for ever' if kept == math.inf else f'for {kept:g} s'}, and its server closes them "
            f"after {seconds:g} s: the first call after a quiet time fails",
            (),
            f"pool_pre_ping=True, or keepalive, max_lifetime or pool_recycle below {seconds:g}",
        )


def _kept_idle(pool: Any, guard: Guard | None) -> Iterator[float]:
    """Yields each limit, in seconds, of the time for which a pool keeps a connection silent."""
    recycle: float = getattr(pool, "_recycle", -1)
    if recycle >= 0:
        yield recycle
    attachment = None if guard is None or guard.mode != "enforce" else attachment_of(guard)
    if attachment is None or attachment.upkeep is None:
        return
    life = attachment.upkeep.life.settings
    # The connections of minimum_idle outlive idle_timeout.
    for limit in (life.keepalive, life.max_lifetime, None if life.minimum_idle else life.idle_timeout):
        if limit is not None:
            yield limit


def _kind(url: Any) -> str:
    name: str = url.get_backend_name()
    return {"mariadb": "mysql", "postgres": "postgresql"}.get(name, name)
