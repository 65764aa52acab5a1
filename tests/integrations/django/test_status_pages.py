"""The status pages as URLs of a Django project. No server is needed: the pages ask no database."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings
from django.urls import include, path

from guardrails import ConfigurationError, Guard
from support import asgi_client, django_lab, wsgi_client

PAGES = "guardrails.integrations.django.urls"
MIDDLEWARE = "guardrails.integrations.django.GuardrailsMiddleware"
NOWHERE = {"ENGINE": django_lab.ENGINE, "NAME": "shop", "HOST": "127.0.0.1", "PORT": 1}


@pytest.fixture(params=["WSGI", "ASGI"])
def project(request, monkeypatch):
    """Makes a project that includes the pages of its settings; gives what asks it for a path."""
    changed = []

    def make(middleware=(), **guardrails):
        monkeypatch.delitem(sys.modules, PAGES, raising=False)
        urls = ModuleType("urls")
        changed.append(
            override_settings(
                MIDDLEWARE=[MIDDLEWARE, *middleware],
                ROOT_URLCONF=urls,
                GUARDRAILS=guardrails,
                LOGIN_URL="/in",
            )
        )
        changed[-1].enable()
        urls.urlpatterns = [path("internal/", include(PAGES))]
        if request.param == "WSGI":
            ask, environment, handler = wsgi_client.ask, wsgi_client.environment, WSGIHandler()
        else:
            ask, environment, handler = asgi_client.ask, asgi_client.http, ASGIHandler()
        return lambda where, **more: ask(handler, environment(f"/internal/{where}", **more))

    yield make
    for each in changed:
        each.disable()
    sys.modules.pop(PAGES, None)


def names(answer):
    """The names of the guards on the page of figures."""
    assert answer.status == 200
    return [guard["name"] for guard in json.loads(answer.body)["guards"]]


named = Guard("named", max_concurrent_calls=2)


def test_the_guards_are_those_of_the_databases_and_of_the_settings(project):
    db = Guard("shop-db", max_concurrent_calls=2)
    with (
        django_lab.known("shop", NOWHERE | {"OPTIONS": {"guard": db}}),
        django_lab.known("replica", NOWHERE | {"OPTIONS": {"guard": db}}),
        django_lab.known("bare", {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}),
    ):
        assert names(project()("status.json")) == ["shop-db"]
        ask = project(guards=[f"{__name__}.named", db])
        assert names(ask("status.json")) == names(ask("status.json/")) == ["shop-db", "named"]


def test_a_project_without_a_guard_has_the_pages(project):
    """As in development, where the database is another one."""
    ask = project()
    assert names(ask("status.json")) == []
    assert ask("readyz").status == 200


def test_every_page_is_there(project):
    ask = project(guards=[named])
    assert (ask("livez").status, ask("readyz/").status, ask("history.json").status) == (200, 200, 200)
    assert b"named" in ask("metrics").body
    assert ask("").headers["content-type"].startswith("text/html")
    assert ask("nothing").status == 404


def test_the_pages_are_only_read(project):
    ask = project(guards=[named])
    head = ask("livez", method="HEAD")
    assert (head.status, head.body, int(head.headers["content-length"]) > 0) == (200, b"", True)
    refused = ask("livez", method="POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


def test_the_pages_use_no_database_and_no_login(project):
    """The database is away, every request is a transaction, and Django's middleware asks for a login."""
    db = Guard("shop-db", max_concurrent_calls=1, timeout=1.0)
    with django_lab.known("shop", NOWHERE | {"OPTIONS": {"guard": db}, "ATOMIC_REQUESTS": True}):
        assert project()("readyz").status == 200
        assert db.snapshot().admitted == 0
        views = [each.callback for each in importlib.import_module(PAGES).urlpatterns]
        assert [view.login_required for view in views] == [False] * len(views)


def test_a_process_that_is_not_ready_is_no_error_of_django(project, caplog):
    ask = project(guards=[named])
    assert ask("readyz").status == 200
    importlib.import_module(PAGES).drain()
    answer = ask("readyz")
    assert (answer.status, json.loads(answer.body)["reasons"]) == (503, ["draining"])
    assert not [record for record in caplog.records if record.name == "django.request"]


def test_a_wrong_guard_is_named(project):
    project(guards=[named])
    sys.modules.pop(PAGES, None)
    with (
        override_settings(GUARDRAILS={"guards": ["json.db"]}),
        pytest.raises(ConfigurationError, match=r"'json\.db' cannot be imported"),
    ):
        importlib.import_module(PAGES)
