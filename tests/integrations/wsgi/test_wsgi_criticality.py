"""A request's class under WSGI: by its route or by a trusted header, as long as the request lasts."""

from __future__ import annotations

import contextvars

import pytest

from guardrails import ConfigurationError, guarded
from guardrails._core.criticality import CLASSES
from guardrails._runtime.scope import current, rank_of
from guardrails.integrations.wsgi import GuardrailsMiddleware
from support.wsgi_client import PLAIN, Request, ask, environment, fine


def class_here():
    """The class of whoever asks."""
    return CLASSES[rank_of(current())]


def classes(*requests, **settings):
    """The classes that the application sees."""
    seen = []

    def app(environ, start_response):
        seen.append(class_here())
        return fine(environ, start_response)

    guarded_app = GuardrailsMiddleware(app, **settings)
    for request in requests:
        assert ask(guarded_app, request).status == 200
    assert current() is None
    return seen


def test_the_path_or_the_template_says_it():
    """Others are what they always were."""
    routes = {"/reports": "SHEDDABLE", "/orders/{id}/pay": "CRITICAL_PLUS"}
    requests = [environment(path) for path in ("/reports/7", "/orders/1/pay", "/orders/1", "/")]
    assert classes(*requests, criticality=routes) == ["SHEDDABLE", "CRITICAL_PLUS", "CRITICAL", "CRITICAL"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("x-criticality", "SHEDDABLE_PLUS")], "SHEDDABLE_PLUS"),
        ([("x-criticality", "sheddable_plus")], "SHEDDABLE"),
        ([("x-criticality", "CRITICAL,CRITICAL_PLUS")], "SHEDDABLE"),
        ([("x-criticality", "\u0660\x00\xff" * 999)], "SHEDDABLE"),
        ([("x-other", "CRITICAL_PLUS")], "SHEDDABLE"),
    ],
    ids=["a word", "another word", "two headers", "rubbish", "another header"],
)
def test_a_header_says_it_only_where_it_is_trusted(headers, expected):
    """Exactly one, in exactly these words; anything else says nothing, and the path counts."""
    request, routes = environment("/", headers=headers), {"/": "SHEDDABLE"}
    assert classes(request, criticality=routes, criticality_header="X-Criticality") == [expected]
    assert classes(request, criticality=routes) == ["SHEDDABLE"]


def test_the_innermost_word_counts(make_guard):
    """A decorated function says it for itself, and what is around it has its own class again."""
    db = make_guard("db")
    seen = []

    @guarded(db, criticality="CRITICAL_PLUS")
    def pay():
        seen.append(class_here())

    def app(environ, start_response):
        pay()
        seen.append(class_here())
        return fine(environ, start_response)

    ask(GuardrailsMiddleware(app, criticality={"/": "SHEDDABLE"}))
    assert seen == ["CRITICAL_PLUS", "SHEDDABLE"]


def test_a_stream_keeps_its_class_until_it_is_closed():
    """In each of its steps; the server's thread between them has none, nor has what is left behind."""
    seen, left_behind = [], []

    def app(_environ, start_response):
        start_response("200 OK", PLAIN)
        left_behind.append(contextvars.copy_context())
        for _ in range(2):
            seen.append(class_here())
            yield b"piece"

    request = Request(GuardrailsMiddleware(app, criticality={"/": "SHEDDABLE"})).begin()
    while request.step():
        assert class_here() == "CRITICAL"
    assert seen == ["SHEDDABLE", "SHEDDABLE"]
    assert left_behind[0].run(class_here) == "SHEDDABLE"
    request.close()
    assert left_behind[0].run(class_here) == "CRITICAL"


@pytest.mark.parametrize(
    "settings",
    [
        {"criticality": {"/": "HIGH"}},
        {"criticality": {"reports": "SHEDDABLE"}},
        {"criticality": "SHEDDABLE"},
        {"criticality_header": ""},
        {"criticality_header": 7},
    ],
)
def test_wrong_settings_are_named(settings):
    """When the middleware is built, not at the first request."""
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        GuardrailsMiddleware(fine, **settings)
