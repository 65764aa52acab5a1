"""A Django service in one file, whose PostgreSQL may lock up.

PGDATABASE=shop gunicorn --worker-class gthread --threads 40 examples.django_postgresql:application
"""

from __future__ import annotations

import os

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import include, path

from guardrails import Guard, guarded

CONNECTIONS = 10

db = Guard("db", max_concurrent_calls=CONNECTIONS, timeout=2.0)
reports = db.compartment("reports")

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["guardrails.integrations.django.GuardrailsMiddleware"],
    GUARDRAILS={"guards": [db], "exempt": ["/ping", "/internal"], "request_timeout": 5.0},
    DATABASES={
        "default": {
            "ENGINE": "guardrails.integrations.django.postgresql",  # instead of django.db.backends.postgresql
            "NAME": os.environ.get("PGDATABASE", "postgres"),  # host, port and user: PGHOST, PGPORT, PGUSER
            "OPTIONS": {"guard": db, "pool": {"min_size": 1, "max_size": CONNECTIONS}},
        }
    },
)
django.setup(set_prefix=False)


def ask(sql: str, *parameters: int) -> int:
    """Takes a slot until the request is over. A statement that takes longer than two seconds is cancelled."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        answer: int = cursor.fetchone()[0]
        return answer


def orders(_request: HttpRequest) -> JsonResponse:
    """Goes on while the reports' table is locked."""
    return JsonResponse({"orders": ask("select count(*) from orders")})


@guarded(reports, timeout=1.0)
def monthly_report(_request: HttpRequest, month: int) -> JsonResponse:
    """At most 70 % of the slots, one second for all its statements, a circuit of its own."""
    asked = "select coalesce(sum(amount), 0) from reports where month = %s"
    return JsonResponse({"report": ask(asked, month)})


def ping(_request: HttpRequest) -> JsonResponse:
    """Needs nothing and never waits for it."""
    return JsonResponse({"ping": "pong"})


urlpatterns = [
    path("orders", orders),
    path("reports/<int:month>", monthly_report),
    path("ping", ping),
    path("internal/", include("guardrails.integrations.django.urls")),  # for probes and guardrails watch
]

application = get_wsgi_application()
