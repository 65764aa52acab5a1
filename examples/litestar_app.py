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

engine = create_async_engine(os.environ.get("DATABASE_URL", "postgresql+asyncpg://localhost/shop"))
db = protect(engine, timeout=2.0)
reports = db.compartment("reports")


@get("/orders")
async def orders() -> dict[str, int]:
    """Goes on while the reports' table is locked."""
    async with engine.connect() as connection:
        return {"orders": (await connection.execute(text("select count(*) from orders"))).scalar_one()}


@get("/reports/{month:int}")
@guarded(reports, timeout=1.0)
async def monthly_report(month: int) -> dict[str, int]:
    """At most 70 % of the pool, one second for all its statements, a circuit of its own."""
    async with engine.connect() as connection:
        asked = text("select coalesce(sum(amount), 0) from reports where month = :month")
        return {"report": (await connection.execute(asked, {"month": month})).scalar_one()}


@get("/ping")
async def ping() -> str:
    """Needs no database and never waits for one."""
    return "pong"


app = Litestar(
    [orders, monthly_report, ping, asgi("/internal", is_mount=True, copy_scope=True)(status_app([db]))],
    middleware=[
        DefineMiddleware(
            GuardrailsMiddleware,  # type: ignore[arg-type]  # Litestar's types for messages are its own
            guards=[db],
            exempt=["/internal"],
        )
    ],
)
