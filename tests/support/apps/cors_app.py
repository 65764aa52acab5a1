"""A page, and services of another origin that refuse: what a browser lets the page read of a refusal.

The page is asked for as 127.0.0.1 and asks localhost, so all of it is of another origin.
"""

from __future__ import annotations

import flask
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse
from django.urls import path
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

from guardrails import BreakerPolicy, Guard
from guardrails.integrations.asgi import GuardrailsMiddleware, requires
from guardrails.integrations.flask import Guardrails
from guardrails.integrations.flask import requires as flask_requires
from guardrails.testing import open_circuit
from support import django_lab  # noqa: F401 - configures Django

db = Guard("db", max_concurrent_calls=1, breaker=BreakerPolicy(wait_duration_in_open_state=600.0))
open_circuit(db)
GUARDED = {"guards": [db], "requires": {"/edge": [db]}}
CORS = {"allow_origins": ["*"], "allow_methods": ["POST"], "allow_headers": ["X-Key"]}
EXPOSED = {"expose_headers": ["Retry-After"]}

PAGE = """<!doctype html><title>shop</title><pre></pre><script>
const show = line => { document.querySelector("pre").textContent += line + "\\n"; };
const ask = async (name, url) => {
  try {
    const answer = await fetch(url, {method: "POST", headers: {"X-Key": "1"}});
    const told = await answer.json();
    show([name, answer.status, Number(answer.headers.get("Retry-After")) >= 1, told.code].join(" "));
  } catch (error) { show(name + " cannot be read"); }
};
const asgi = "http://localhost:" + location.port, wsgi = "http://localhost:" + location.hash.slice(1);
(async () => {
  for (const where of ["edge", "inside", "marked"]) {
    await ask("fastapi/" + where, asgi + "/fastapi/" + where);
    await ask("django/" + where, asgi + "/django/" + where);
    if (where != "edge") await ask("flask/" + where, wsgi + "/" + where);
  }
  await ask("not exposed", asgi + "/unexposed/edge");
  await ask("wrong order", asgi + "/backwards/edge");
  document.title = "asked";
})();
</script>"""


async def page(_request):
    return HTMLResponse(PAGE)


# --- FastAPI -----------------------------------------------------------------------------------------


def fastapi(*middleware):
    """A service with the middlewares in this order, the outermost last."""
    app = FastAPI()

    @app.post("/edge")
    @app.post("/inside")
    def inside():
        return db.run(len, "x")

    @app.post("/marked")
    @requires(db)
    def marked():
        return "not refused"

    for kind, options in middleware:
        app.add_middleware(kind, **options)
    return app


# --- Flask -------------------------------------------------------------------------------------------

shop = flask.Flask("shop")


@shop.post("/inside")
def inside():
    """Refused in the view."""
    return str(db.run(len, "x"))


@shop.post("/marked")
@flask_requires(db)
def marked():
    """Refused before the view."""
    return "not refused"


@shop.after_request
def allow(response):
    """As Flask-CORS does."""
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.headers["Access-Control-Allow-Headers"] = "X-Key"
    response.headers["Access-Control-Expose-Headers"] = "Retry-After"
    return response


Guardrails(shop, guards=[db])


# --- Django ------------------------------------------------------------------------------------------


def cross_origin(get_response):
    """As django-cors-headers does."""

    def middleware(request):
        response = HttpResponse() if request.method == "OPTIONS" else get_response(request)
        response["Access-Control-Allow-Origin"] = "*"
        response["Access-Control-Allow-Headers"] = "X-Key"
        response["Access-Control-Expose-Headers"] = "Retry-After"
        return response

    return middleware


def view(_request):
    """Refused in the view."""
    return HttpResponse(str(db.run(len, "x")))


urlpatterns = [
    path("edge", view),
    path("inside", view),
    path("marked", requires(db)(lambda _: HttpResponse())),
]
settings.MIDDLEWARE = ["cors_app.cross_origin", "guardrails.integrations.django.GuardrailsMiddleware"]
settings.ROOT_URLCONF = "cors_app"
settings.GUARDRAILS = GUARDED

app = Starlette(
    routes=[
        Route("/", page),
        Mount("/fastapi", app=fastapi((GuardrailsMiddleware, GUARDED), (CORSMiddleware, CORS | EXPOSED))),
        Mount("/unexposed", app=fastapi((GuardrailsMiddleware, GUARDED), (CORSMiddleware, CORS))),
        Mount("/backwards", app=fastapi((CORSMiddleware, CORS | EXPOSED), (GuardrailsMiddleware, GUARDED))),
        Mount("/django", app=ASGIHandler()),
    ]
)
