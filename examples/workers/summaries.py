"""What the workers of this folder do: a summary of a month, from one table into another.

The engine and its guard are made once for each process. A worker that forks may import this module before:
the guard opens nothing until it is used, and a connection that a parent has used is not shared with its
children.
"""

from __future__ import annotations

import os

from sqlalchemy import create_engine, text

from guardrails import protect

engine = create_engine(
    os.environ.get("DATABASE_URL", "postgresql+psycopg://localhost/shop"), pool_size=4, max_overflow=0
)
db = protect(engine, name="reports-db", timeout=5.0)


def summarize(month: int) -> int:
    """Writes the sum of a month, and returns it. Running it twice does no harm."""
    with engine.begin() as connection:
        asked = text("select coalesce(sum(amount), 0) from reports where month = :month")
        amount: int = connection.execute(asked, {"month": month}).scalar_one()
        kept = text(
            "insert into summaries (month, amount) values (:month, :amount)"
            " on conflict (month) do update set amount = excluded.amount"
        )
        connection.execute(kept, {"month": month, "amount": amount})
    return amount
