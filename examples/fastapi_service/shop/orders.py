"""The repository: every statement of the service, each method with its own limit.

The engine is guarded where it is made, so a method is safe without a decorator. The decorator gives it a
timeout, and a compartment of its own: part of the slots, and a circuit.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from guardrails import RetryBudget, guarded, retrying
from shop.guards import db, reports

READ_AGAIN = retrying(attempts=2, on=(InterfaceError, OperationalError), budget=RetryBudget())
"""For a lost connection, in methods that change nothing. A refusal is never tried again."""


@dataclass(frozen=True, slots=True)
class Orders:
    """Reads and writes orders.

    Args:
        engine: The guarded engine of their database.
    """

    engine: AsyncEngine

    @guarded(db, timeout=1.0, retry=READ_AGAIN)
    async def count(self) -> int:
        """How many orders there are."""
        async with self.engine.connect() as connection:
            found: int = (await connection.execute(text("select count(*) from orders"))).scalar_one()
            return found

    @guarded(db, criticality="CRITICAL_PLUS")
    async def add(self, article: str) -> int:
        """Takes an order; returns its number. Nothing else takes the slots that this call may need."""
        async with self.engine.begin() as connection:
            asked = text("insert into orders (article) values (:article) returning id")
            number: int = (await connection.execute(asked, {"article": article})).scalar_one()
            return number

    @guarded(reports)
    async def month(self, month: int) -> int:
        """What was sold in a month. At most 70 % of the slots, one second, a circuit of its own."""
        async with self.engine.connect() as connection:
            asked = text("select coalesce(sum(amount), 0) from reports where month = :month")
            amount: int = (await connection.execute(asked, {"month": month})).scalar_one()
            return amount
