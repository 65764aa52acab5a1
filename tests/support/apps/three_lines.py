"""The smallest applications there are with the README's three lines: two routes, a table for each.

``/orders/{number}`` reads the table of one name, ``/items/{number}`` that of the other.
"""

# ruff: noqa: PLC0415 - each application imports its own framework and no other

from __future__ import annotations

import os

from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from guardrails import protect

TABLES = "three_lines_orders", "three_lines_items"
ORDERS, ITEMS = (f"select count(*) from {table}" for table in TABLES)


def url(driver):
    return os.environ["DATABASE_URL"].replace("postgresql://", f"postgresql+{driver}://")


def fastapi_async():
    from fastapi import FastAPI

    from guardrails.integrations.asgi import GuardrailsMiddleware

    app, engine = FastAPI(), create_async_engine(url("asyncpg"))
    db = protect(engine)
    app.add_middleware(GuardrailsMiddleware, guards=[db])

    async def ask(sql):
        async with engine.connect() as connection:
            return await connection.scalar(text(sql))

    @app.get("/orders/{number}")
    async def orders(number: int):
        return await ask(ORDERS)

    @app.get("/items/{number}")
    async def items(number: int):
        return await ask(ITEMS)

    return app


def asker(driver="psycopg"):
    """A protected engine, its guard, and what asks it something."""
    engine = create_engine(url(driver))
    db = protect(engine)

    def ask(sql):
        with engine.connect() as connection:
            return connection.scalar(text(sql))

    return db, ask


def fastapi_threads():
    from fastapi import FastAPI

    from guardrails.integrations.asgi import GuardrailsMiddleware

    app, (db, ask) = FastAPI(), asker()
    app.add_middleware(GuardrailsMiddleware, guards=[db])
    app.get("/orders/{number}")(lambda number: ask(ORDERS))
    app.get("/items/{number}")(lambda number: ask(ITEMS))
    return app


def starlette():
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from guardrails.integrations.asgi import GuardrailsMiddleware

    db, ask = asker("psycopg2")
    routes = [
        Route("/orders/{number}", lambda request: PlainTextResponse(str(ask(ORDERS)))),
        Route("/items/{number}", lambda request: PlainTextResponse(str(ask(ITEMS)))),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(GuardrailsMiddleware, guards=[db])
    return app


def flask():
    from flask import Flask

    from guardrails.integrations.flask import Guardrails

    app, (db, ask) = Flask("shop"), asker()
    Guardrails(app, guards=[db], threads=40)
    app.get("/orders/<int:number>", endpoint="orders")(lambda number: str(ask(ORDERS)))
    app.get("/items/<int:number>", endpoint="items")(lambda number: str(ask(ITEMS)))
    return app


db = None
"""The guard that the settings of Django name."""

urlpatterns = []


def _django():
    import django
    from django.conf import settings
    from django.db import connection
    from django.http import HttpResponse
    from django.urls import path
    from psycopg.conninfo import conninfo_to_dict

    from guardrails import Guard

    global db  # noqa: PLW0603 - named in the settings, as in an application
    db = Guard("db", max_concurrent_calls=15)
    told = conninfo_to_dict(os.environ["DATABASE_URL"])
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=["guardrails.integrations.django.GuardrailsMiddleware"],
        GUARDRAILS={"guards": [f"{__name__}.db"]},
        DATABASES={
            "default": {
                "ENGINE": "guardrails.integrations.django.postgresql",
                "NAME": told["dbname"],
                "HOST": told["host"],
                "PORT": told["port"],
                "USER": told["user"],
                "OPTIONS": {"guard": f"{__name__}.db", "pool": {"min_size": 1, "max_size": 15}},
            }
        },
    )
    django.setup(set_prefix=False)

    def view(sql):
        def answer(_request, number):
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return HttpResponse(str(cursor.fetchone()[0]))

        return answer

    urlpatterns[:] = [path("orders/<int:number>", view(ORDERS)), path("items/<int:number>", view(ITEMS))]


def django_wsgi():
    from django.core.wsgi import get_wsgi_application

    _django()
    return get_wsgi_application()


def django_asgi():
    from django.core.asgi import get_asgi_application

    _django()
    return get_asgi_application()
