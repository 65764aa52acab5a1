"""A FastAPI service whose database may lock up: three lines keep the rest of it alive.

DATABASE_URL=postgresql+asyncpg://localhost/shop uvicorn examples.fastapi_app:app
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import guarded, protect
from guardrails.integrations.asgi import GuardrailsMiddleware

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///example.db"))
app = FastAPI()

db = protect(engine)  # 1. every checkout of this engine is guarded
reports = db.compartment("reports")  # 2. this workload may not sink the rest
app.add_middleware(GuardrailsMiddleware, guards=[db])  # 3. refusals become 503 with Retry-After


@app.get("/items")
async def items() -> dict[str, Any]:
    """Goes on while the reports' table is locked."""
    async with engine.connect() as connection:
        return {"items": (await connection.execute(text("select 1"))).scalar()}


@app.get("/reports")
@guarded(reports, timeout=2.0)
async def monthly_report() -> dict[str, Any]:
    """At most 70 % of the pool, two seconds for all its statements, a circuit of its own."""
    async with engine.connect() as connection:
        return {"report": (await connection.execute(text("select 2"))).scalar()}


@app.get("/ping")
async def ping() -> str:
    """Needs no database and never waits for one."""
    return "pong"
