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

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///example.db"))
db = protect(engine)


async def items(_request: Request) -> JSONResponse:
    """Is not even asked while the circuit is open."""
    async with engine.connect() as connection:
        return JSONResponse({"items": (await connection.execute(text("select 1"))).scalar()})


async def ping(_request: Request) -> JSONResponse:
    """Needs no database and never waits for one."""
    return JSONResponse("pong")


app = Starlette(
    routes=[Route("/items", items), Route("/ping", ping), Mount("/internal", status_app([db]))],
    middleware=[
        Middleware(
            GuardrailsMiddleware,
            guards=[db],
            requires={"/items": [db]},
            exempt=["/internal"],
            request_timeout=5.0,
            max_in_flight=200,
        )
    ],
)
