"""One guard and the PostgreSQL databases behind it, with or without psycopg's pools. Must not make a pool."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db.backends.postgresql import base

from guardrails._dbapi.drivers import Driver
from guardrails._dbapi.drivers.psycopg_pool import FromPool, PooledPsycopg
from guardrails._pool.figures import PoolFigures
from guardrails._runtime.scope import note_guard_error
from guardrails.errors import CallTimeoutError
from guardrails.integrations.django._database.protection import Protection
from guardrails.integrations.django.postgresql._connections import PooledConnections
from guardrails.integrations.django.postgresql._pools import largest, least
from guardrails.integrations.django.postgresql._renewal import PoolRenewal

__all__ = ["PostgresProtection"]


class PostgresProtection(Protection):
    """See Protection.

    Attributes:
        connections: Counts the connections, those of pools included.
        pooled: Takes connections from a pool.
    """

    system = "postgresql"
    connections: PooledConnections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pooled = self.new_runner(FromPool())
        self.follow(self.pooled)

    @staticmethod
    def dbapi() -> Any:
        """See Protection."""
        return base.Database

    @staticmethod
    def descriptor_of(connection: Any) -> int:
        """See Protection."""
        descriptor: int = connection.fileno()
        return descriptor

    @staticmethod
    def least_of(options: dict[str, Any]) -> object:
        """See Protection."""
        return least(options.get("pool"))

    @staticmethod
    def new_driver() -> Driver:
        """See Protection."""
        return PooledPsycopg()

    def new_connections(self, figures: PoolFigures) -> PooledConnections:
        """See Protection."""
        return PooledConnections(figures)

    def new_renewal(self) -> PoolRenewal:
        """See Protection."""
        return PoolRenewal(self.guard, self.direct.endpoint, self.connections.open_pools)

    @staticmethod
    def size_of(options: dict[str, Any]) -> int | None:
        """See Protection."""
        return largest(options.get("pool"))

    @property
    def most(self) -> int | None:
        """See Attachment: what the smallest pool can hold that was asked so far."""
        return min((pool.max_size for pool in self.connections.open_pools()), default=None)

    def borrow(self, pool: Any) -> Any:
        """Takes a connection from a pool.

        Raises:
            CallTimeoutError: There was none in time.
            RejectedError: Too many callers wait for one.
        """
        from psycopg_pool import PoolTimeout, TooManyRequests  # noqa: PLC0415 - there only with a pool

        from guardrails.integrations.django.postgresql._pool_timeout import PoolTimeoutError  # noqa: PLC0415
        from guardrails.integrations.psycopg_pool._borrowing import borrow  # noqa: PLC0415

        name, core = self.guard.name, self.guard.call_settings.gates[0].core
        try:
            return self.pooled.connect(partial(borrow, pool, pool.getconn), {})
        except CallTimeoutError as error:
            self._figures.timed_out()
            raise note_guard_error(PoolTimeoutError(name, error.timeout)) from error.__cause__
        except TooManyRequests as error:
            if not core.enforces:
                raise
            raise self.guard.call_settings.gates[0].count_refusal("bulkhead_full") from error
        except PoolTimeout as error:
            self._figures.timed_out()
            if not core.enforces:
                raise
            raise note_guard_error(PoolTimeoutError(name, pool.timeout)) from error

    def serve(self, alias: str, pool: Any) -> None:
        """Notes that connections come from a pool, too; see ``check``."""
        self.check(alias, pool.max_size)
        self.connections.pools.add(pool)
