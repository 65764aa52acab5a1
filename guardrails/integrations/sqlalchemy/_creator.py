"""Bounds the set-up of new connections, from their opening until the pool hands them out.

Depends on the function that opens a pool's connections; must not import the pool's hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry, Pool

    from guardrails._dbapi.runner import StatementRunner

__all__ = ["bounded_creator"]


def bounded_creator(runner: StatementRunner) -> property:
    """Returns a property for the function that opens a pool's connections; it bounds their set-up."""

    def creator(self: Pool) -> Callable[[ConnectionPoolEntry], Any]:
        try:
            invoke = vars(self)["_invoke_creator"]
        except KeyError:
            raise AttributeError("_invoke_creator") from None

        def create(record: ConnectionPoolEntry) -> Any:
            connection = invoke(record)
            runner.set_up(connection)
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
