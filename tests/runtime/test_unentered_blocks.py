"""Deadlines and calls around a ``yield`` that runs in a thread are named once; the others are not."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import logging
import threading

import flask
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from guardrails import Guard, deadline, remaining
from guardrails._runtime import unentered
from guardrails.integrations.asgi import GuardrailsMiddleware
from guardrails.integrations.flask import Guardrails
from guardrails.integrations.wsgi import GuardrailsMiddleware as WSGIMiddleware
from support import (
    asgi_client,
    django_lab,  # noqa: F401 - configures Django
    wsgi_client,
)

db = Guard("db", max_concurrent_calls=9, timeout=2.0)
unbounded = Guard("unbounded", max_concurrent_calls=9, timeout=None)
attached = Guard("attached", max_concurrent_calls=9)
attached.call_settings.attach(None, attached=True)
reports = attached.compartment("reports")
reports.call_settings.attach(None, attached=True)

BLOCKS = {
    "deadline": lambda: deadline(2.0),
    "call": db.call,
    "compartment of a pool": reports.call,
}


@pytest.fixture
def told(caplog, monkeypatch):
    """The warnings since the start of the test."""
    monkeypatch.setattr(unentered, "_warned_of", set())
    caplog.set_level(logging.WARNING, "guardrails")
    return lambda: [
        record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()
    ]


def service(dependency):
    app = FastAPI()

    @app.get("/sync", dependencies=[Depends(dependency)])
    def in_a_thread():
        return remaining()

    @app.get("/async", dependencies=[Depends(dependency)])
    async def on_the_loop():
        return remaining()

    return app


def bodies(app):
    paths = ("/sync", "/async") * 2
    return [asgi_client.ask(app, asgi_client.http(where)).body for where in paths]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("wrap", [lambda app: app, GuardrailsMiddleware], ids=["bare", "in the middleware"])
def test_def_dependency_is_named_once(told, block, wrap):
    """The endpoint does not see its block; the warning says where it is and what to write."""

    def in_reports():
        with BLOCKS[block]():
            yield

    assert bodies(wrap(service(in_reports))) == [b"null"] * 4
    [words] = told()
    assert "test_unentered_blocks.py:" in words
    assert "in_reports (" in words
    assert "make in_reports an async def" in words


def test_dependency_is_named_and_not_its_helper(told):
    """Which may be right in itself, such as a context manager of the application's own."""

    @contextlib.contextmanager
    def helper():
        with db.call():
            yield

    def in_reports():
        with helper():
            yield

    bodies(service(in_reports))
    [words] = told()
    assert "make in_reports an async def" in words


def test_dependency_that_fails_is_named_too(told):
    """Its block ends by the error."""

    def in_reports():
        with deadline(2.0):
            yield

    app = FastAPI()

    @app.get("/", dependencies=[Depends(in_reports)])
    async def endpoint():
        raise ValueError

    assert isinstance(asgi_client.ask(app).raised, ValueError)
    assert len(told()) == 1


def test_streamed_body_of_threads_is_named(told):
    """Each step of a synchronous generator runs in a context of its own."""

    def pieces():
        with deadline(2.0):
            yield b"one"
            yield str(remaining()).encode()

    async def endpoint(_request):
        return StreamingResponse(pieces())

    assert asgi_client.ask(Starlette(routes=[Route("/", endpoint)])).body == b"oneNone"
    assert len(told()) == 1


# --- nothing to say --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
def test_async_dependency_has_its_effect(told, block):
    """For endpoints of both kinds."""

    async def in_reports():
        if block == "deadline":
            with deadline(2.0):
                yield
        else:
            async with BLOCKS[block]():
                yield

    seen = bodies(service(in_reports))
    assert all(body != b"null" for body in seen) is (block != "compartment of a pool")
    assert told() == []


@pytest.mark.parametrize(
    "block", [*BLOCKS.values(), unbounded.call], ids=[*BLOCKS, "call without a deadline"]
)
def test_generators_in_one_context_are_right(told, block):
    """Nested, left by an error, closed early, with calls inside that end the fast path."""

    @contextlib.contextmanager
    def helper():
        with block():
            yield

    def steps():
        with block():
            yield
            with block(), helper():
                db.run(len, "x")
            yield

    with helper(), helper():
        db.run(len, "x")
    with pytest.raises(ValueError, match="mine"), helper():
        raise ValueError("mine")
    assert len(list(steps())) == 2
    early = steps()
    next(early)
    early.close()
    assert told() == []


def test_call_that_is_left_in_another_thread_by_hand_is_right(told):
    """It was seen where it was entered."""
    call = db.call()
    call.__enter__()
    thread = threading.Thread(target=call.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert told() == []


@pytest.mark.parametrize(
    "install", [Guardrails, lambda app: setattr(app, "wsgi_app", WSGIMiddleware(app.wsgi_app))]
)
def test_streamed_body_under_wsgi_is_right(told, install):
    """All of its steps see the block."""
    app = flask.Flask("shop")

    @app.get("/")
    def endpoint():
        def pieces():
            with deadline(2.0):
                yield b"one"
                yield str(remaining() is not None).encode()

        return flask.Response(pieces())

    install(app)
    assert wsgi_client.ask(app).body == b"oneTrue"
    assert told() == []


def in_a_deadline(get_response):
    """A synchronous middleware of Django's."""

    def middleware(request):
        with deadline(2.0):
            return get_response(request)

    return middleware


async def left(_request):
    """An asynchronous view returns the state that it sees."""
    await asyncio.sleep(0)
    return HttpResponse(str(remaining() is not None))


urlpatterns = [path("left", left)]


def test_sync_middleware_of_django_is_right_under_asgi(told):
    """asgiref hands the context on in both directions."""
    with override_settings(MIDDLEWARE=[f"{__name__}.in_a_deadline"], ROOT_URLCONF=__name__):
        assert asgi_client.ask(ASGIHandler(), asgi_client.http("/left")).body == b"True"
    assert told() == []


def test_generator_at_the_bottom_of_a_threads_stack_is_named(told):
    """As of a server that runs each step in a thread of its own, started in C."""
    done = threading.Event()

    def pieces():
        try:
            with deadline(2.0):
                yield
        finally:
            done.set()

    body, started = pieces(), threading.Event()
    _thread.start_new_thread(lambda step: (step(), started.set()), (body.__next__,))
    assert started.wait(10)
    _thread.start_new_thread(body.close, ())
    assert done.wait(10)
    [words] = told()
    assert "make pieces an async def" in words
