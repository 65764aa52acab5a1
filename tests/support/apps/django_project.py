"""A Django project for real servers, WSGI and ASGI: middleware, guarded database, views of both kinds.

| path | |
|---|---|
| ``/items`` | one quick query |
| ``/async`` | the same in an asynchronous view |
| ``/ask`` | one quick query, given a second |
| ``/slow`` | a query that is not done in time |
| ``/hold`` | a query that takes two seconds |
| ``/wait`` | a query that waits for the advisory lock 7 |
| ``/async-wait`` | the same in an asynchronous view |
| ``/ping`` | ``fine`` |
| ``/figures`` | what is inside now, and the compartments that have formed |
| ``/circuit/<state>`` | opens the circuit by hand, or resets it |

``DATABASE_KEEPS`` in the environment is ``pool``, or a number for ``CONN_MAX_AGE``.
With ``CANCEL_ON_DISCONNECT`` the ASGI middleware is around Django.
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
from guardrails.integrations.asgi import GuardrailsMiddleware

patient = BreakerPolicy(slow_call_duration_threshold=20.0)  # the circuit is no matter here
db = Guard("db", max_concurrent_calls=3, max_wait_duration=0, timeout=10.0, breaker=patient)

keeps = os.environ.get("DATABASE_KEEPS", "pool")
pool = {"pool": {"min_size": 1, "max_size": 3}} if keeps == "pool" else {}

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "guardrails.integrations.django.GuardrailsMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    GUARDRAILS={"guards": [db], "exempt": ["/figures", "/circuit/{state}"], "max_in_flight": 20},
    DATABASES={
        "default": {
            "ENGINE": "guardrails.integrations.django.postgresql",
            "NAME": "postgres",
            "HOST": os.environ.get("DATABASE_HOST"),
            "PORT": os.environ.get("DATABASE_PORT"),
            "USER": os.environ.get("DATABASE_USER"),
            "CONN_MAX_AGE": 0 if keeps == "pool" else int(keeps),
            "OPTIONS": {
                "guard": db,
                "compartments": os.environ.get("DATABASE_COMPARTMENTS", "auto"),
                **pool,
            },
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


@guarded(db, timeout=1.0)
def ask_quickly(_request):
    return HttpResponse(ask("select 1"))


def wait(_request):
    return HttpResponse(ask("select 1 from pg_advisory_xact_lock_shared(7)"))


async def wait_async(request):
    return await sync_to_async(wait)(request)


def hold(_request):
    return HttpResponse(ask("select 1 from pg_sleep(2)"))


def ping(_request):
    return HttpResponse("fine")


def figures(_request):
    snapshot = db.snapshot()
    said = {"in_use": snapshot.in_use, "failed": snapshot.failed}
    return JsonResponse(said | {"compartments": sorted(part.name for part in db.compartments)})


def circuit(_request, state):
    {"open": db.force_open, "reset": db.reset}[state]()
    return HttpResponse(state)


urlpatterns = [
    path("ask", ask_quickly),
    path("wait", wait),
    path("async-wait", wait_async),
    path("circuit/<str:state>", circuit),
    path("items/<int:number>", items),
    path("async", items_async),
    path("slow", slow),
    path("hold", hold),
    path("ping", ping),
    path("figures", figures),
]

wsgi = get_wsgi_application()
asgi = get_asgi_application()
if os.environ.get("CANCEL_ON_DISCONNECT"):
    asgi = GuardrailsMiddleware(asgi, guards=[db], cancel_on_disconnect=True)
