"""Services with a status page, and one that has none."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from guardrails.integrations.starlette import status_app


@contextlib.contextmanager
def served(*guards):
    """A service with these guards; yields the address of its pages."""
    app = Starlette(routes=[Mount("/internal", status_app(guards))])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/internal"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def answering(status, body):
    """A service that is none of ours."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with serving(Handler) as address:
        yield address


@contextlib.contextmanager
def serving(handler):
    """Serves with a handler of the standard library; yields the address."""
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
