"""What a WSGI environ says of a request, and an answer in WSGI's words. Knows no guard and no server."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from guardrails._http.answers import DEADLINE_HEADERS, Problem
from guardrails._http.criticality import CriticalityRules

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

__all__ = ["Mounts", "answer_of", "budgets_of", "path_of", "rank_in", "status_line", "template_in"]


def _key(header: str) -> str:
    return f"HTTP_{header.upper().replace('-', '_')}"


_BUDGETS = tuple((_key(name), name.encode()) for name in DEADLINE_HEADERS)

_LEFT_BY_FRAMEWORKS = (
    ("werkzeug.request", ("url_rule", "rule")),  # Flask
    ("bottle.route", ("rule",)),
)
"""Where a framework leaves what it knows of a request, and the way from there to the template."""


def path_of(environ: WSGIEnvironment) -> str:
    """The decoded path below the application's mount."""
    path: str = environ.get("PATH_INFO", "")
    return path if path.isascii() else path.encode("latin-1", "replace").decode("utf-8", "replace")


def template_in(environ: WSGIEnvironment) -> str | None:
    """The template of the route that a framework has found; None for one that leaves nothing behind."""
    for key, way in _LEFT_BY_FRAMEWORKS:
        found = environ.get(key)
        for step in way:
            found = getattr(found, step, None)
        if isinstance(found, str):
            return found
    return None


class Mounts:
    """The mounts of applications, as far as requests have told: two may have the same routes."""

    MOST = 32
    """They are the application's own, but behind some proxies a client can make them up."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, environ: WSGIEnvironment) -> str:
        """The mount that a request goes to; empty for none, and for one too many."""
        mount = environ.get("SCRIPT_NAME")
        if not isinstance(mount, str) or not mount:
            return ""
        if mount not in self._known:
            if len(self._known) >= self.MOST:
                return ""
            self._known.add(mount)
        return mount


def status_line(status: int) -> str:
    """The number with its phrase."""
    return f"{status} {HTTPStatus(status).phrase}"


def answer_of(problem: Problem, environ: WSGIEnvironment) -> tuple[int, list[tuple[str, str]], bytes]:
    """A problem worded for this client: status, headers as text, body."""
    accept: str = environ.get("HTTP_ACCEPT", "")  # several are joined by the server
    status, headers, body = problem.answer(accept.encode("latin-1", "replace"))
    return status, [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers], body


def budgets_of(environ: WSGIEnvironment) -> list[tuple[bytes, bytes]]:
    """The headers that may state how long a client will wait."""
    return [(name, environ[key].encode("latin-1", "replace")) for key, name in _BUDGETS if key in environ]


def rank_in(environ: WSGIEnvironment, importance: CriticalityRules | None, path: str) -> int | None:
    """How much a request matters, by its headers or its path; None if nobody says."""
    if importance is None:
        return None
    header = importance.header
    value = None if header is None else environ.get(_key(header.decode()))
    # Two headers arrive as one, joined by a comma: no word, so they say nothing.
    said = [] if header is None or value is None else [(header, value.encode("latin-1", "replace"))]
    return importance.rank(said, path)
