"""Reads a request from a WSGI environ, and words an answer for WSGI. Must not import a guard or a server."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from guardrails._http.answers import DEADLINE_HEADERS, Problem
from guardrails._http.criticality import CriticalityRules
from guardrails._util.names import with_braces

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

__all__ = ["Mounts", "answer_of", "budgets_of", "path_of", "rank_in", "status_line", "template_in"]


def _key(header: str) -> str:
    return f"HTTP_{header.upper().replace('-', '_')}"


_BUDGETS = tuple((_key(name), name.encode()) for name in DEADLINE_HEADERS)

_BOTTLE = "bottle.route"
_ROUTES = (
    ("werkzeug.request", ("url_rule", "rule")),  # Flask
    (_BOTTLE, ("rule",)),
)
"""The environ keys in which frameworks leave the route, and the attributes that lead to its template."""


def path_of(environ: WSGIEnvironment) -> str:
    """The decoded path below the application's mount."""
    path: str = environ.get("PATH_INFO", "")
    return path if path.isascii() else path.encode("latin-1", "replace").decode("utf-8", "replace")


def template_in(environ: WSGIEnvironment) -> str | None:
    """Returns the template of the route that the framework has found; None if it leaves none."""
    for key, attributes in _ROUTES:
        found = environ.get(key)
        for attribute in attributes:
            found = getattr(found, attribute, None)
        if isinstance(found, str):
            return with_braces(found, name_first=key == _BOTTLE)
    return None


class Mounts:
    """The mounts seen in requests: two mounted applications may have the same routes."""

    MOST = 32
    """The number of mounts kept: behind some proxies a client can make them up."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, environ: WSGIEnvironment) -> str:
        """Returns the mount of a request; empty for none, and for a new one beyond the limit."""
        mount = environ.get("SCRIPT_NAME")
        if not isinstance(mount, str) or not mount:
            return ""
        if mount not in self._known:
            if len(self._known) >= self.MOST:
                return ""
            self._known.add(mount)
        return mount


def status_line(status: int) -> str:
    """Returns a status as WSGI has it, such as ``503 Service Unavailable``."""
    return f"{status} {HTTPStatus(status).phrase}"


def answer_of(problem: Problem, environ: WSGIEnvironment) -> tuple[int, list[tuple[str, str]], bytes]:
    """Words a problem for this client: status, headers as text, body."""
    accept: str = environ.get("HTTP_ACCEPT", "")  # several are joined by the server
    status, headers, body = problem.answer(accept.encode("latin-1", "replace"))
    return status, [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers], body


def budgets_of(environ: WSGIEnvironment) -> list[tuple[bytes, bytes]]:
    """Returns the deadline headers of a request."""
    return [(name, environ[key].encode("latin-1", "replace")) for key, name in _BUDGETS if key in environ]


def rank_in(environ: WSGIEnvironment, rules: CriticalityRules | None, path: str) -> int | None:
    """Returns the rank of a request by its headers or its path; None if neither gives one."""
    if rules is None:
        return None
    header = rules.header
    value = None if header is None else environ.get(_key(header.decode()))
    # A server joins two headers with a comma, which makes an unknown class: ignored.
    headers = [] if header is None or value is None else [(header, value.encode("latin-1", "replace"))]
    return rules.rank(headers, path)
