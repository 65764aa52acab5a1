"""The application: its routes, its middleware, its probes and its metrics.

DATABASE_URL=postgresql+asyncpg://localhost/shop REDIS_URL=redis://localhost uvicorn shop.main:app
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.starlette import status_app
from shop.guards import cache, cache_guard, db, engine, settings
from shop.orders import Orders
from shop.pages import cached

GUARDS = [db, cache_guard]

PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}
UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"description": "Refused at once; try again after Retry-After", **PROBLEM},
    504: {"description": "Stopped in time; the outcome is unknown", **PROBLEM},
}
"""The answers of the middleware, for the OpenAPI document."""

orders = Orders(engine)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Closes at the end what the requests used. The server has then ended the last of them."""
    yield
    await engine.dispose()
    await cache.aclose()


app = FastAPI(title="shop", lifespan=lifespan)
app.add_middleware(
    GuardrailsMiddleware,
    guards=GUARDS,
    exempt=["/internal", "/ping"],
    request_timeout=settings.request_timeout,
    max_in_flight=200,
)
app.mount("/internal", status_app(GUARDS))  # /livez, /readyz, /status.json, /metrics and a page for browsers


@app.get("/orders", responses=UNAVAILABLE)
async def order_count() -> dict[str, int]:
    """How many orders there are, at most five seconds old."""
    return {"orders": await cached(cache, "orders", orders.count)}


@app.post("/orders/{article}", status_code=201, responses=UNAVAILABLE)
async def order(article: str) -> dict[str, int]:
    """Takes an order."""
    return {"order": await orders.add(article)}


@app.get("/reports/{month}", responses=UNAVAILABLE)
async def report(month: int) -> dict[str, int]:
    """What was sold in a month; may be refused while the table is locked, and the rest goes on."""
    return {"report": await orders.month(month)}


@app.get("/ping")
async def ping() -> str:
    """Needs no server and never waits for one."""
    return "pong"
