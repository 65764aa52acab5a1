"""A Litestar service whose database may lock up.

DATABASE_URL=postgresql+asyncpg://localhost/shop uvicorn examples.litestar_app:app
"""

from __future__ import annotations

import os

from litestar import Litestar, asgi, get
from litestar.middleware import DefineMiddleware
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import guarded, protect
from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.starlette import status_app

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///example.db"))
db = protect(engine)
reports = db.compartment("reports")


@get("/items")
async def items() -> dict[str, int]:
    """Goes on while the reports' table is locked."""
    async with engine.connect() as connection:
        return {"items": (await connection.execute(text("select 1"))).scalar_one()}


@get("/reports")
@guarded(reports, timeout=2.0)
async def monthly_report() -> dict[str, int]:
    """At most 70 % of the pool, two seconds for all its statements, a circuit of its own."""
    async with engine.connect() as connection:
        return {"report": (await connection.execute(text("select 2"))).scalar_one()}


app = Litestar(
    [items, monthly_report, asgi("/internal", is_mount=True, copy_scope=True)(status_app([db]))],
    middleware=[
        DefineMiddleware(
            GuardrailsMiddleware,  # type: ignore[arg-type]  # Litestar's types for messages are its own
            guards=[db],
            exempt=["/internal"],
        )
    ],
)
