"""The size of an engine's pool: by its load, by the server's limit, or from the environment.

Depends on the arithmetic of pools; must not import engines.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

from guardrails._pool.sizing import RESERVED, Demand, Fleet, wanted
from guardrails._util.checks import Faults, finite
from guardrails._util.texts import read_flag, read_number
from guardrails.errors import ConfigurationError

__all__ = ["PoolSettings"]


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
        pool_pre_ping: True to ping each connection on its checkout, at the cost of a round trip. A guard's
            ``keepalive`` pings idle connections only.

    Raises:
        ConfigurationError: One or more settings are wrong; all are named at once.
    """

    pool_size: int
    max_overflow: int = 0
    pool_timeout: float = 30.0
    pool_recycle: float = -1
    pool_pre_ping: bool = False

    def __post_init__(self) -> None:
        faults = Faults("PoolSettings")
        faults.count("pool_size", self.pool_size)
        faults.count("max_overflow", self.max_overflow, least=0)
        faults.seconds("pool_timeout", self.pool_timeout, zero=True)
        if self.pool_recycle != -1:
            faults.seconds("pool_recycle", self.pool_recycle)
        if not isinstance(self.pool_pre_ping, bool):
            faults.add("pool_pre_ping", self.pool_pre_ping, "True or False")
        faults.raise_if_any()

    @classmethod
    def from_env(cls, prefix: str = "DB", *, workers: int | None = None) -> Self:
        """Returns the settings of environment variables; one that is missing or empty keeps its default.

        The variables are ``DB_POOL_SIZE`` (5), ``DB_MAX_OVERFLOW`` (0), ``DB_POOL_TIMEOUT`` (30),
        ``DB_POOL_RECYCLE`` (-1) and ``DB_POOL_PRE_PING`` (false). With ``DB_MAX_CONNECTIONS``, the server's
        limit, the size is that of `for_workers`, and a size that is given must not exceed it.

        Args:
            prefix: The beginning of the variables' names.
            workers: Number of processes that share the limit; None takes ``WEB_CONCURRENCY``, or 1.

        Raises:
            ConfigurationError: One or more variables are wrong; all are named at once.
        """
        faults = Faults("PoolSettings.from_env")
        if type(prefix) is not str or not prefix:
            faults.add("prefix", prefix, "a text")
        faults.raise_if_any()
        return cls(**_from_env(prefix, workers))

    @classmethod
    def for_workers(
        cls, n: int, *, max_connections: int, headroom: float = 0.2, replicas: int = 1, engines: int = 1
    ) -> Self:
        """Returns the largest pool that each process can have of a server's connections.

        Args:
            n: Number of processes on each machine or in each container, such as gunicorn's workers.
            max_connections: The server's limit.
            headroom: Fraction of the limit, from 0 to below 1, that is left to superusers, migrations, other
                services, and to the new processes of a deployment that start before the old ones end.
            replicas: Number of machines or containers.
            engines: Number of engines in each process that connect to the server.

        Raises:
            ConfigurationError: An argument is wrong, or there are fewer connections than pools.
        """
        faults = Faults("PoolSettings.for_workers")
        faults.count("n", n)
        faults.count("max_connections", max_connections)
        if not finite(headroom) or not 0 <= headroom < 1:
            faults.add("headroom", headroom, "a fraction from 0 to below 1")
        faults.count("replicas", replicas)
        faults.count("engines", engines)
        faults.raise_if_any()
        pools, usable = n * replicas * engines, math.floor(max_connections * (1 - headroom) + 1e-9)
        if usable < pools:
            raise ConfigurationError(
                f"PoolSettings: {pools} pools share {usable} of {max_connections} connections, less than one "
                "for each: run fewer processes, or put a pooler in between"
            )
        return cls(pool_size=usable // pools)

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


_READERS: dict[str, Callable[[str], Any]] = {
    "pool_size": read_number,
    "max_overflow": read_number,
    "pool_timeout": read_number,
    "pool_recycle": read_number,
    "pool_pre_ping": read_flag,
}


def _from_env(prefix: str, workers: int | None) -> dict[str, Any]:
    """Reads and checks the variables of `PoolSettings.from_env`."""
    faults = Faults("PoolSettings.from_env")
    found = {
        field: read(text)
        for field, read in _READERS.items()
        if (text := os.environ.get(f"{prefix}_{field.upper()}"))
    }
    for field, value in found.items():
        _check_variable(faults, f"{prefix}_{field.upper()}", field, value)
    limit: Any = read_number(os.environ.get(f"{prefix}_MAX_CONNECTIONS") or "none")
    faults.count(f"{prefix}_MAX_CONNECTIONS", limit, none=True)
    if workers is None:
        processes: Any = read_number(os.environ.get("WEB_CONCURRENCY") or "1")
        faults.count("WEB_CONCURRENCY", processes)
    else:
        processes = workers
        faults.count("workers", processes)
    faults.raise_if_any()
    if limit is not None:
        most = PoolSettings.for_workers(processes, max_connections=limit).pool_size
        size = found.setdefault("pool_size", max(1, most - found.get("max_overflow", 0)))
        if size + found.get("max_overflow", 0) > most:
            faults.count(
                f"{prefix}_POOL_SIZE + {prefix}_MAX_OVERFLOW", size + found.get("max_overflow", 0), most=most
            )
            faults.raise_if_any()
    return {"pool_size": 5, **found}


def _check_variable(faults: Faults, variable: str, field: str, value: Any) -> None:
    if field == "pool_size":
        faults.count(variable, value)
    elif field == "max_overflow":
        faults.count(variable, value, least=0)
    elif field == "pool_timeout":
        faults.seconds(variable, value, zero=True)
    elif field == "pool_recycle" and value != -1:
        faults.seconds(variable, value)
    elif field == "pool_pre_ping" and not isinstance(value, bool):
        faults.add(variable, value, "true or false")
