"""A Starlette service: what refuses, refuses at the edge, and probes are always answered.

DATABASE_URL=postgresql+asyncpg://localhost/shop uvicorn examples.starlette_app:app
"""

from __future__ import annotations

import os

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from guardrails import protect
from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.starlette import status_app

engine = create_async_engine(os.environ.get("DATABASE_URL", "postgresql+asyncpg://localhost/shop"))
db = protect(engine, timeout=1.0)


async def orders(_request: Request) -> JSONResponse:
    """Goes on while the reports' table is locked: each route has a compartment by itself."""
    async with engine.connect() as connection:
        found = await connection.execute(text("select count(*) from orders"))
        return JSONResponse({"orders": found.scalar_one()})


async def monthly_report(request: Request) -> JSONResponse:
    """Is not even asked while the circuit of its compartment is open."""
    async with engine.connect() as connection:
        asked = text("select coalesce(sum(amount), 0) from reports where month = :month")
        found = await connection.execute(asked, {"month": request.path_params["month"]})
        return JSONResponse({"report": found.scalar_one()})


async def ping(_request: Request) -> JSONResponse:
    """Needs no database and never waits for one."""
    return JSONResponse("pong")


app = Starlette(
    routes=[
        Route("/orders", orders),
        Route("/reports/{month:int}", monthly_report),
        Route("/ping", ping),
        Mount("/internal", status_app([db])),
    ],
    middleware=[
        Middleware(
            GuardrailsMiddleware,
            guards=[db],
            requires={"/orders": [db], "/reports": [db]},
            exempt=["/internal"],
            request_timeout=5.0,
            max_in_flight=200,
        )
    ],
)
