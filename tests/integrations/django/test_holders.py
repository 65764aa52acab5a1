"""Whose lines hold Django's connections, where Django itself has taken them."""

from __future__ import annotations

import threading

import gunicorn.workers.gthread
import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.http import HttpResponse
from django.test import override_settings
from django.test.client import RequestFactory
from django.urls import path

from guardrails import Guard, pool_status
from support import django_lab

seen = []

SERVER = """
def serve(application, environ, start_response):
    application(environ, start_response).close()
"""


def note():
    """Notes what holds the connection."""
    seen.extend(
        (holder.where, holder.now, holder.doing, holder.route) for holder in pool_status("shop").holders
    )


def load():
    """The first line of the application that uses the connection."""
    with connections["shop"].cursor() as cursor:
        cursor.execute("select 1")


def view(_request, number):
    note()
    load()
    note()
    return HttpResponse(str(number))


urlpatterns = [path("orders/<int:number>", view)]


@pytest.mark.parametrize("options", [{}, {"pool": {"min_size": 1, "max_size": 2}}], ids=["alone", "pool"])
def test_first_line_that_asks_stands_for_the_one_that_django_has_taken(postgres, options):
    """``ATOMIC_REQUESTS`` takes the connection before the view, in a thread of the server."""
    guard = Guard("holders", max_concurrent_calls=2)
    entry = django_lab.database(postgres, {"guard": guard, **options}, ATOMIC_REQUESTS=True)
    statuses = []

    with (
        override_settings(
            ROOT_URLCONF=__name__,
            MIDDLEWARE=["guardrails.integrations.django.GuardrailsMiddleware"],
            GUARDRAILS={"guards": [guard]},
        ),
        django_lab.configured("shop", entry),
    ):
        handler = WSGIHandler()
        environ = RequestFactory().get("/orders/7").environ
        space = {}
        exec(compile(SERVER, gunicorn.workers.gthread.__file__, "exec"), space)
        start = (handler, environ, lambda status, _: statuses.append(status))
        thread = threading.Thread(target=space["serve"], args=start)
        seen.clear()
        thread.start()
        thread.join()
    assert statuses == ["200 OK"]
    (before, now, doing, route), (after, *_) = seen
    assert (before, doing, route) == ((), "other_work", "/orders/{number:int}")
    assert [line.split(" in ")[1] for line in now] == ["note", "view"]
    assert [line.split(" in ")[1] for line in after] == ["load", "view"]
