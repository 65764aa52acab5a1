"""Attaches a guard to a client of redis-py and detaches it. Depends on every other module of this folder."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.client import Pipeline

from guardrails._guard.compartments import set_compartments
from guardrails._guard.environment import fill_pool_options
from guardrails._guard.guard import Guard, attach
from guardrails._guard.pool_snapshot import PoolSnapshot
from guardrails._pool.holders import PoolStatus
from guardrails._pool.life import LifeSettings
from guardrails._pool.limits import (
    check_compartments,
    check_leak_after,
    guarded_already,
    raises_as_driver,
    refuse_unknown_options,
    slots_for,
)
from guardrails._util.texts import with_article
from guardrails.errors import ConfigurationError
from guardrails.fleet._fleet import Budget, Verdict
from guardrails.fleet._joining import join_fleet
from guardrails.integrations.redis._caching import execute_with
from guardrails.integrations.redis._cluster import guard_cluster, is_cluster, refuse_for_cluster
from guardrails.integrations.redis._errors import DRIVER_ERRORS
from guardrails.integrations.redis._guarded_connection import derived
from guardrails.integrations.redis._local_cache import reply_options_of
from guardrails.integrations.redis._pool import ClientAdmission, guard_of
from guardrails.integrations.redis._pool_connections import capacity

__all__ = ["guard_client", "guard_of_client"]

_POOLS = (redis.ConnectionPool, redis.asyncio.ConnectionPool)


def guard_client(
    client: object,
    *,
    name: str | None = None,
    compartments: str = "auto",
    fleet: Budget | Verdict | None = None,
    leak_after: float | None = 60.0,
    raise_as: str | None = None,
    **options: Any,
) -> Guard:
    """Attaches a guard to a client; `guardrails.protect` calls it.

    The guard covers every client, pipeline, lock, script and subscriber that shares the pool.

    Args:
        client: A ``redis.Redis`` or ``redis.asyncio.Redis`` with any pool or with a single connection, also
            one made from a URL or by a Sentinel; or a ``RedisCluster`` of either, whose nodes get a
            compartment each.
        name: The guard's label; None is ``"redis"``.
        compartments: ``"auto"``: each guarded function and each route gets a compartment, with a circuit of
            its own and at most 70 % of the slots while another one is active. ``"declared"``: only
            ``guard.compartment()`` makes compartments. ``"none"``: there are no compartments.
        fleet: A budget of a `guardrails.fleet.Fleet`: the pool has at most as many connections open as its
            lease gives, and ``max_concurrent_calls`` is the most that it may be given. Or a verdict of one:
            the circuit opens and closes with those of the other workers; a budget has one, too.
        leak_after: Seconds after which a connection that is out, and on which nothing runs, is reported in
            the log and as a `LeakFound`. None reports none.
        raise_as: None: refusals and timeouts are only this library's errors. ``"driver"``: a refusal is also
            a ``redis.RedisError``, a timeout also a ``redis.TimeoutError``.
        **options: As for `Guard`, and the pool's life: ``minimum_idle``, ``idle_timeout``, ``max_lifetime``
            and ``keepalive``; see `LifeSettings`. ``max_concurrent_calls`` defaults to the pool's
            ``max_connections``; of a cluster it is that of each node.

    Returns:
        The guard; ``guard.detach()`` removes it from the client.

    Raises:
        ConfigurationError: The client is a pipeline; it was closed or is guarded already; it has a single
            connection and is given a budget; its pool has no limit and none is given, or the limit is above
            the pool's; an option is not for clusters.
    """
    name = "redis" if name is None else name
    refuse_unknown_options(options, guard_client)
    if is_cluster(client):
        refuse_for_cluster(name, compartments, fleet)
        return guard_cluster(client, name, leak_after, raise_as, options)
    pool = _pool_of(client)
    known = guard_of(pool)
    if known is not None:
        raise guarded_already("this client's pool", known)
    kind = f"{with_article(type(pool).__name__)} without max_connections"
    fill_pool_options(name, options)
    slots = slots_for(name, options.pop("max_concurrent_calls", None), capacity(pool), kind)
    how = check_compartments(name, compartments)
    as_driver = raises_as_driver(name, raise_as)
    check_leak_after(name, leak_after)
    kept = None if _has_one_connection(client) else capacity(pool) or 0
    life = LifeSettings.taken_from(options, name, kept, "a client with a single connection")
    _check_budget(name, fleet, kept)
    guard = Guard(name, max_concurrent_calls=slots, **options)
    set_compartments(guard, how)
    if as_driver:
        guard.call_settings.gates[-1].errors = DRIVER_ERRORS
    attachment = _ClientAttachment(client, guard, pool, life, leak_after)
    attachment.attach(fleet)
    attach(guard, attachment)
    return guard


def guard_of_client(client: object) -> Guard | None:
    """Returns the guard of a client; None without one, or for another object."""
    return guard_of(client if is_cluster(client) else getattr(client, "connection_pool", None))


def _check_budget(name: str, fleet: Budget | Verdict | None, kept: int | None) -> None:
    if isinstance(fleet, Budget) and kept is None:
        raise ConfigurationError(
            f"guard {name!r}: a client with a single connection has no pool that a budget could share; "
            "give it a pool, or fleet.verdict(...)"
        )


def _pool_of(client: Any) -> Any:
    kind = with_article(type(client).__name__)
    if not isinstance(client, redis.Redis | redis.asyncio.Redis):
        each = "; protect the client of each of its databases: protect(database.client)"
        hint = each if "MultiDB" in kind else ""
        raise ConfigurationError(
            f"protect: {kind} cannot be guarded, only a Redis or RedisCluster of redis or redis.asyncio "
            f"can{hint}"
        )
    if isinstance(client, Pipeline | AsyncPipeline):
        raise ConfigurationError(f"protect: {kind} belongs to a client; protect that client")
    pool = client.connection_pool
    if not isinstance(pool, _POOLS):
        raise ConfigurationError(f"protect: a pool of class {type(pool).__name__} cannot be guarded")
    if getattr(client, "_single_connection_client", False) and client.connection is None:
        raise ConfigurationError("protect: this client has been closed; make a new one")
    return pool


def _has_one_connection(client: Any) -> bool:
    """True for a client with ``single_connection_client``; the two flavours name it differently."""
    names = ("single_connection_client", "_single_connection_client")
    return any(getattr(client, name, False) is True for name in names)


class _ClientAttachment:
    """The hooks on one client: the classes of its pool and of its connections."""

    def __init__(
        self, client: Any, guard: Guard, pool: Any, life: LifeSettings, leak_after: float | None
    ) -> None:
        self._client = client
        self._guard = guard
        self._admission = ClientAdmission(guard, pool, life, leak_after)
        if self._admission.cache is not None:
            self._admission.cache.claim(reply_options_of(pool))
        self.upkeep = self._admission.upkeep
        self.most = capacity(pool)

    def attach(self, fleet: Budget | Verdict | None) -> None:
        admission = self._admission
        admission.lease, self._leave_fleet = join_fleet(
            fleet, self._guard, self.upkeep, admission.registry.figures
        )
        self._admission.attach()
        cache, base = admission.cache, type(self._client)
        if cache is not None:
            self._client.__class__ = derived(base, {"_execute_command": execute_with(cache, base)})
        if self._client.connection is not None:
            self._admission.adopt(self._client.connection)

    def figures(self) -> PoolSnapshot:
        """See `Attachment`."""
        return self._admission.registry.figures.snapshot()

    def status(self) -> PoolStatus:
        """See `Attachment`."""
        return self._admission.registry.status()

    def detach(self) -> None:
        """Removes the hooks; see `Attachment`."""
        self._leave_fleet()
        self._admission.detach()
        if self._admission.cache is not None:
            self._client.__class__ = type(self._client).__bases__[0]
            self._admission.cache.release()
