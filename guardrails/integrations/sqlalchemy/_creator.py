"""Bounds the set-up of new connections, from their opening until the pool hands them out.

Depends on the function that opens a pool's connections; must not import the pool's hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guardrails.integrations.sqlalchemy._proxied import dbapi_connection_of

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry, Pool

    from guardrails._dbapi.runner import StatementRunner
    from guardrails._pool.figures import PoolFigures
    from guardrails._util.weak_registry import WeakRegistry
    from guardrails.integrations.sqlalchemy._upkeep import EngineUpkeep

__all__ = ["around_initialize", "bounded_creator"]


def bounded_creator(
    runner: StatementRunner, figures: PoolFigures, records: WeakRegistry[Any], upkeep: EngineUpkeep
) -> property:
    """Returns a property for the function that opens a pool's connections; it bounds their set-up.

    Args:
        runner: Bounds the set-up.
        figures: Counts the connections opened.
        records: The pool's records of connections, to which each one is added.
        upkeep: Is told of each new connection.
    """

    def creator(self: Pool) -> Callable[[ConnectionPoolEntry], Any]:
        try:
            invoke = vars(self)["_invoke_creator"]
        except KeyError:
            raise AttributeError("_invoke_creator") from None

        def create(record: ConnectionPoolEntry) -> Any:
            started = figures.clock()
            connection = invoke(record)
            figures.connected(started)
            records.add(record)
            runner.set_up(connection)
            upkeep.created(record, connection)
            return connection

        return create

    def keep(self: Pool, invoke: object) -> None:
        vars(self)["_invoke_creator"] = invoke

    def forget(self: Pool) -> None:
        try:
            del vars(self)["_invoke_creator"]
        except KeyError:
            raise AttributeError("_invoke_creator") from None

    return property(creator, keep, forget)


def around_initialize(original: Callable[[Any], Any], runner: StatementRunner) -> Callable[[Any], Any]:
    """Bounds the dialect's queries on its first connection; some of them pass no other hook."""
    run_limited, questioned = runner.run_limited, runner.questioned

    def ask(connection: Any) -> Any:
        fairy = getattr(connection, "connection", None)  # None if it is the driver's connection
        asked = dbapi_connection_of(fairy) if fairy else connection
        questioned.append(asked)
        try:
            return run_limited(original, (connection,), asked)
        finally:
            questioned.remove(asked)

    return ask
