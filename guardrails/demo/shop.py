"""The shop of the demo: one small web application, as its author would write it.

Must not know the demo, its faults or its twins. Only the guarded twin has the lines that end in
``# guardrails``: `guardrails.demo.twin` leaves them out for the plain twin. It leaves out those that end in
``# guardrails, declared`` where compartments form by themselves or not at all.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from guardrails import BreakerPolicy, guarded, protect  # guardrails
from guardrails.integrations.asgi import GuardrailsMiddleware  # guardrails

if TYPE_CHECKING:
    from starlette.requests import Request

engine = create_async_engine(
    os.environ.get("SHOP_DATABASE_URL", "postgresql+asyncpg://127.0.0.1/shop"),
    connect_args={"server_settings": json.loads(os.environ.get("SHOP_SERVER_SETTINGS", "{}"))},
)
query_seconds = float(os.environ.get("SHOP_QUERY_SECONDS", "0.05"))
forgotten: list[AsyncConnection] = []
cache = Redis(port=int(os.environ.get("SHOP_CACHE_PORT", "6379")))

db = protect(engine, name="db")  # guardrails
orders = db.compartment("orders")  # guardrails, declared
reports = db.compartment("reports")  # guardrails, declared
in_a_row = BreakerPolicy(consecutive_failures=5)  # guardrails
prices = protect(cache, name="prices", timeout=0.2, breaker=in_a_row)  # guardrails


class OrderRepository:
    """Reads orders. ``work()`` stands for the cost of a real query."""

    @guarded(orders)  # guardrails, declared
    async def one(self, number: int) -> dict[str, Any]:
        """The order with this number."""
        query = text("SELECT id, total, work(:seconds) FROM orders WHERE id = :id")
        async with engine.connect() as connection:
            row = (await connection.execute(query, {"id": number, "seconds": query_seconds})).one()
        return {"id": row.id, "total": str(row.total)}


class ItemRepository:
    """Reads items: another table in the same database, through the same pool."""

    async def one(self, number: int) -> dict[str, Any]:
        """The item with this number."""
        query = text("SELECT id, name, work(0.002) FROM items WHERE id = :id")
        async with engine.connect() as connection:
            row = (await connection.execute(query, {"id": number})).one()
        return {"id": row.id, "name": row.name}


class PriceRepository:
    """Reads prices: out of the cache, which another job keeps filled, or else out of the database."""

    async def one(self, number: int) -> dict[str, Any]:
        """The price of this order."""
        price = await self._cached(number)
        if price is None:
            query = text("SELECT total, work(0.01) FROM orders WHERE id = :id")
            async with engine.connect() as connection:
                price = (await connection.execute(query, {"id": number})).one().total
        return {"id": number, "price": str(float(price))}

    async def _cached(self, number: int) -> bytes | str | None:
        try:
            return await cache.get(f"price:{number}")
        except Exception:  # noqa: BLE001 - the database can answer for any fault of the cache
            return None


class ReportRepository:
    """Counts orders, with the mistake of the leak scenario."""

    @guarded(reports)  # guardrails, declared
    async def total(self) -> int:
        """The number of orders."""
        connection = await engine.connect()
        result = await connection.execute(text("SELECT count(*) FROM orders"))
        forgotten.append(connection)  # the mistake: kept, and never closed
        return int(result.scalar_one())


async def get_order(request: Request) -> JSONResponse:
    """One order."""
    return JSONResponse(await OrderRepository().one(int(request.query_params.get("id", "1"))))


async def get_item(request: Request) -> JSONResponse:
    """One item."""
    return JSONResponse(await ItemRepository().one(int(request.query_params.get("id", "1"))))


async def get_price(request: Request) -> JSONResponse:
    """One price."""
    return JSONResponse(await PriceRepository().one(int(request.query_params.get("id", "1"))))


async def get_report(_: Request) -> JSONResponse:
    """The number of orders."""
    return JSONResponse({"orders": await ReportRepository().total()})


async def ping(_: Request) -> JSONResponse:
    """An answer that needs no database."""
    return JSONResponse({"pong": True})


app = Starlette(
    routes=[
        Route("/orders", get_order),
        Route("/items", get_item),
        Route("/prices", get_price),
        Route("/reports", get_report),
        Route("/ping", ping),
    ]
)
app.add_middleware(GuardrailsMiddleware, guards=[db])  # guardrails
