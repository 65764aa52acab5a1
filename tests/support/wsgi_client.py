"""A server of one request, in process, as strict as PEP 3333 allows: it shows what an application did."""

from __future__ import annotations

import json
import sys
from wsgiref.util import FileWrapper, setup_testing_defaults


def environment(path="/", *, method="GET", headers=(), **more):
    """The environ of a request."""
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": "", "SCRIPT_NAME": ""}
    setup_testing_defaults(environ)
    environ["wsgi.file_wrapper"] = FileWrapper
    for name, value in headers:
        environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    return environ | more


class Request:
    """One request, step by step: `begin`, then `step` for each piece, then `close`."""

    def __init__(self, app, environ=None):
        self.app = app
        self.environ = environment() if environ is None else environ
        self.announced = None
        self.sent = None
        self.pieces = []
        self.raised = None
        self.result = None
        self._iterator = None

    def start_response(self, status, headers, exc_info=None):
        if exc_info is None:
            assert self.announced is None, "a second status without exc_info"
        elif self.sent is not None:
            raise exc_info[1].with_traceback(exc_info[2])
        self.announced = status, headers
        return self.write

    def write(self, data):
        assert self.announced is not None, "a body without a status"
        self.sent = self.sent or self.announced
        self.pieces.append(data)

    def begin(self):
        """Calls the application."""
        self.result = self.app(self.environ, self.start_response)
        return self

    def step(self):
        """Sends the next piece; False when there is none."""
        if self._iterator is None:
            self._iterator = iter(self.result)
        piece = next(self._iterator, None)
        if piece is None:
            return False
        if piece:
            self.write(piece)
        else:
            assert self.announced is not None, "an empty piece without a status"
        return True

    def close(self):
        """Says that the server needs no more."""
        if hasattr(self.result, "close"):
            self.result.close()

    def serve(self, most=sys.maxsize):
        """All of it, or the first so many pieces; what is raised is kept, as a server would log it."""
        try:
            try:
                self.begin()
                whole = not all(self.step() for _ in range(most))
                if whole and self.sent is None:
                    self.write(b"")
            finally:
                if self.result is not None:
                    self.close()
        except BaseException as error:
            self.raised = error
        return self

    @property
    def status(self):
        return int(self.sent[0][:3])

    @property
    def headers(self):
        return {name.lower(): value for name, value in self.sent[1]}

    @property
    def body(self):
        return b"".join(self.pieces)

    @property
    def problem(self):
        assert self.headers["content-type"] == "application/problem+json"
        assert int(self.headers["content-length"]) == len(self.body)
        return json.loads(self.body)


def ask(app, environ=None, most=sys.maxsize):
    """Serves one request to its end, or for so many pieces."""
    return Request(app, environ).serve(most)


PLAIN = [("Content-Type", "text/plain")]


def fine(_environ, start_response):
    """Answers 200."""
    start_response("200 OK", PLAIN)
    return [b"fine"]
