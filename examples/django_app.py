"""A Django service in one file, which may lose what it searches with.

gunicorn --threads 40 examples.django_app:application
uvicorn examples.django_app:asgi_application
"""

from __future__ import annotations

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from guardrails import Guard, guarded
from guardrails.integrations.wsgi import status_app

search = Guard("search", max_concurrent_calls=20, timeout=0.5)

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["guardrails.integrations.django.GuardrailsMiddleware"],
    GUARDRAILS={"guards": [search], "exempt": ["/ping"], "max_in_flight": 30, "request_timeout": 5.0},
)
django.setup(set_prefix=False)


@guarded(search)
def suggestions(prefix: str) -> list[str]:
    """Asks the search engine."""
    return [f"{prefix}s"]


def suggest(_request: HttpRequest, prefix: str) -> JsonResponse:
    """Is answered 503 while the search engine is left alone."""
    return JsonResponse({"suggestions": suggestions(prefix)})


def ping(_request: HttpRequest) -> JsonResponse:
    """Needs nothing and never waits for it."""
    return JsonResponse({"ping": "pong"})


urlpatterns = [path("suggest/<str:prefix>", suggest), path("ping", ping)]

application = get_wsgi_application()
asgi_application = get_asgi_application()
probes = status_app([search])  # for a port of its own, or a path of the server in front
