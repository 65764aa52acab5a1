"""A FastAPI service whose database may lock up: three lines keep the rest of it alive.

DATABASE_URL=postgresql+asyncpg://localhost/shop uvicorn examples.fastapi_app:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import guarded, protect
from guardrails.integrations.asgi import GuardrailsMiddleware

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///example.db"))
app = FastAPI()

db = protect(engine)  # 1. every checkout of this engine is guarded
reports = db.compartment("reports")  # 2. this workload may not sink the rest
app.add_middleware(GuardrailsMiddleware, guards=[db])  # 3. refusals become 503 with Retry-After


PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}
UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"description": "Refused at once, try again after Retry-After", **PROBLEM},
    504: {"description": "Stopped in time, the outcome is unknown", **PROBLEM},
}
"""What clients may get besides, for the OpenAPI document."""


@app.get("/items", responses=UNAVAILABLE)
async def items() -> dict[str, Any]:
    """Goes on while the reports' table is locked."""
    async with engine.connect() as connection:
        return {"items": (await connection.execute(text("select 1"))).scalar()}


@app.get("/reports", responses=UNAVAILABLE)
@guarded(reports, timeout=2.0)
async def monthly_report() -> dict[str, Any]:
    """At most 70 % of the pool, two seconds for all its statements, a circuit of its own."""
    async with engine.connect() as connection:
        return {"report": (await connection.execute(text("select 2"))).scalar()}


async def in_reports() -> AsyncIterator[None]:
    """The same compartment as a dependency, for a router or a group of endpoints."""
    async with reports.call(timeout=2.0):
        yield


@app.get("/reports/{month}", dependencies=[Depends(in_reports)], responses=UNAVAILABLE)
async def one_report(month: int) -> dict[str, Any]:
    """Held until the response is sent, which is when FastAPI ends its dependencies."""
    async with engine.connect() as connection:
        return {"report": (await connection.execute(text("select 2 * :month"), {"month": month})).scalar()}


@app.get("/ping")
async def ping() -> str:
    """Needs no database and never waits for one."""
    return "pong"
