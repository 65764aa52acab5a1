"""A whole Django project behind real servers and in front of a real PostgreSQL."""

from __future__ import annotations

import contextlib

from psycopg.conninfo import conninfo_to_dict

from support.http_client import GET, Client
from support.polling import wait_until
from support.server_process import Server

SERVERS = {
    "gunicorn, gthread": (
        "gunicorn django_project:wsgi --worker-class gthread --threads 8 --bind 127.0.0.1:{port}"
    ),
    "uvicorn": "uvicorn django_project:asgi --host 127.0.0.1 --port {port} --lifespan off",
}


@contextlib.contextmanager
def project_behind(name, postgres, folder, **environ):
    """The project behind one of the servers; yields it when it answers."""
    told = conninfo_to_dict(postgres.url(""))
    environ |= {f"DATABASE_{word.upper()}": told[word] for word in ("host", "port", "user")}
    with Server(name, SERVERS[name], folder / "log", environ) as server:
        wait_until(lambda: _answers(server.wait()), seconds=90)
        yield server


def _answers(server):
    """Whether it has come up: gunicorn takes connections before its worker has imported anything."""
    try:
        return get(server, b"/items/1") == (200, b"1")
    except OSError:
        return False


def get(server, path):
    """One request on a connection of its own."""
    with Client(server.address) as client:
        client.send(GET % path)
        status, _, body = client.response()
        return status, body
