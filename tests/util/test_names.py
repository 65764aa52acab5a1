"""The names of routes: one form for all frameworks, and no names that clients make up."""

from __future__ import annotations

import pytest

from guardrails._util.names import request_name, with_braces


@pytest.mark.parametrize(
    ("template", "name_first", "expected"),
    [
        ("/orders/{id}", False, "/orders/{id}"),
        ("/orders/{id:int}", False, "/orders/{id:int}"),
        ("/orders/<id>/lines/<int:line>", False, "/orders/{id}/lines/{line:int}"),
        ("/<string(length=2):lang>/", False, "/{lang:string(length=2)}/"),
        ("/^orders/(?P<id>[0-9]+)/$", False, "/^orders/(?P<id>[0-9]+)/$"),
        ("/orders/<id>/<line:int>", True, "/orders/{id}/{line:int}"),
        ("/<page:re:[a-z]+>", True, "/{page:re:[a-z]+}"),
    ],
)
def test_templates_of_all_frameworks_have_one_form(template, name_first, expected):
    assert with_braces(template, name_first=name_first) == expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("GET", "GET /a"),
        ("HEAD", "GET /a"),
        ("POST", "POST /a"),
        ("MADE-UP", "/a"),
        ("get", "/a"),
        (None, "/a"),
    ],
)
def test_a_client_cannot_make_names(method, expected):
    """A HEAD is a GET, and all methods that are no known ones share a name."""
    assert request_name(method, "/a") == expected
