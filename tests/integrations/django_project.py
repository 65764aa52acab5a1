"""A Django project for real servers, WSGI and ASGI: middleware, guarded database, views of both kinds.

| path | |
|---|---|
| ``/items`` | one quick query |
| ``/async`` | the same in an asynchronous view |
| ``/slow`` | a query that is not done in time |
| ``/hold`` | a query that takes two seconds |
| ``/ping`` | ``fine`` |
| ``/figures`` | what is inside now, and the compartments that have formed |
"""

from __future__ import annotations

import os

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse, JsonResponse
from django.urls import path

from guardrails import BreakerPolicy, Guard, guarded

patient = BreakerPolicy(slow_call_duration_threshold=20.0)  # the circuit is no matter here
db = Guard("db", max_concurrent_calls=3, max_wait_duration=0, timeout=10.0, breaker=patient)

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "guardrails.integrations.django.GuardrailsMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    GUARDRAILS={"guards": [db], "exempt": ["/figures"], "max_in_flight": 20},
    DATABASES={
        "default": {
            "ENGINE": "guardrails.integrations.django.postgresql",
            "NAME": "postgres",
            "HOST": os.environ.get("DATABASE_HOST"),
            "PORT": os.environ.get("DATABASE_PORT"),
            "USER": os.environ.get("DATABASE_USER"),
            "OPTIONS": {"guard": db, "pool": {"min_size": 1, "max_size": 3}, "compartments": "auto"},
        }
    },
)
django.setup(set_prefix=False)


def ask(sql):
    """What the database says."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return str(cursor.fetchone()[0])


def items(_request, number=1):
    return HttpResponse(ask(f"select {number:d}"))


async def items_async(_request):
    return HttpResponse(await sync_to_async(ask)("select 1"))


@guarded(db, timeout=2.0)
def slow(_request):
    return HttpResponse(ask("select pg_sleep(30)"))


def hold(_request):
    return HttpResponse(ask("select 1 from pg_sleep(2)"))


def ping(_request):
    return HttpResponse("fine")


def figures(_request):
    snapshot = db.snapshot()
    said = {"in_use": snapshot.in_use, "failed": snapshot.failed}
    return JsonResponse(said | {"compartments": sorted(part.name for part in db.compartments)})


urlpatterns = [
    path("items/<int:number>", items),
    path("async", items_async),
    path("slow", slow),
    path("hold", hold),
    path("ping", ping),
    path("figures", figures),
]

wsgi = get_wsgi_application()
asgi = get_asgi_application()
