"""A request's class, by its route or by a trusted header: inherited by all it does, answered when shed."""

from __future__ import annotations

import asyncio

import pytest

from guardrails import ConfigurationError, Guard, ShedError
from guardrails._core.criticality import CLASSES
from guardrails._runtime.scope import current, rank_of
from guardrails.integrations.asgi import GuardrailsMiddleware
from support.asgi_client import ask, fine, http, serve, websocket


def classes(*requests, **settings):
    """The classes that the application sees."""
    seen = []

    async def app(scope, receive, send):
        seen.append(CLASSES[rank_of(current())])
        await fine(scope, receive, send)

    guarded = GuardrailsMiddleware(app, **settings)
    for request in requests:
        assert ask(guarded, request).status == 200
    assert current() is None
    return seen


def test_the_path_or_the_template_says_it():
    """Others are what they always were."""
    routes = {"/reports": "SHEDDABLE", "/orders/{id}/pay": "CRITICAL_PLUS"}
    requests = [http(path) for path in ("/reports/7", "/orders/1/pay", "/orders/1", "/")]
    assert classes(*requests, criticality=routes) == ["SHEDDABLE", "CRITICAL_PLUS", "CRITICAL", "CRITICAL"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("x-criticality", "SHEDDABLE_PLUS")], "SHEDDABLE_PLUS"),
        ([("x-criticality", "sheddable_plus")], "SHEDDABLE"),
        ([("x-criticality", "CRITICAL"), ("x-criticality", "CRITICAL_PLUS")], "SHEDDABLE"),
        ([("x-criticality", "\x00" * 999)], "SHEDDABLE"),
        ([("x-other", "CRITICAL_PLUS")], "SHEDDABLE"),
    ],
)
def test_a_header_says_it_only_where_it_is_trusted(headers, expected):
    """Exactly one, in exactly these words; anything else says nothing, and the path counts."""
    request, routes = http("/", headers=headers), {"/": "SHEDDABLE"}
    assert classes(request, criticality=routes, criticality_header="X-Criticality") == [expected]
    assert classes(request, criticality=routes) == ["SHEDDABLE"]


def test_a_shed_request_is_answered_503():
    """With the problem's name for the reason, when to come back, and nothing else."""
    db = Guard("db", max_concurrent_calls=1)

    async def app(scope, receive, send):
        raise ShedError("db", "shed", None)

    answer = ask(GuardrailsMiddleware(app, guards=[db]), http("/"))
    assert (answer.status, b"shed" in answer.body) == (503, True)


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


@pytest.mark.parametrize("error", [None, OSError("the client is gone")], ids=["ended", "broke off"])
def test_a_websocket_matters_as_much_as_a_request(error):
    """By its path or its header, from the handshake to the end of the connection and no further."""
    seen = []

    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        seen.append(CLASSES[rank_of(current())])
        if error is not None:
            raise error

    settings = {"criticality": {"/feed": "SHEDDABLE"}, "criticality_header": "X-Criticality"}
    guarded = GuardrailsMiddleware(app, **settings)

    async def connect(handshake):
        assert (await serve(guarded, handshake)).raised is error
        assert current() is None

    asyncio.run(connect(websocket("/feed/7")))
    asyncio.run(connect(websocket("/feed") | {"headers": [(b"x-criticality", b"CRITICAL_PLUS")]}))
    asyncio.run(connect(websocket("/")))
    assert seen == ["SHEDDABLE", "CRITICAL_PLUS", "CRITICAL"]
