"""The destination of an ASGI request: its route, with the mounts it passes. Depends on no response."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from guardrails._guard.workload_names import request_name
from guardrails._http.routes import RouteTable
from guardrails._runtime.scope import RequestScope

__all__ = ["ASGIScope", "RoutedRequest"]

ASGIScope = MutableMapping[str, Any]


class RoutedRequest(RequestScope):
    """A request whose route can be looked up.

    Attributes:
        asgi: The request's scope in the meaning of ASGI.
        table: The routes of the application, as far as they can be seen.
        mount: Where that application is mounted in another one.
        root: The path of that mount in this request; None at the outermost application.
    """

    __slots__ = ("asgi", "mount", "root", "table")

    asgi: ASGIScope
    table: RouteTable
    mount: str
    root: str | None

    def goes_to(self, asgi: ASGIScope, table: RouteTable, *, by_path: bool) -> None:
        """Notes where the request is going.

        Args:
            asgi: The request's scope in the meaning of ASGI.
            table: The routes it may go to.
            by_path: Whether they are the routes below the middleware, which may be mounted somewhere itself.
        """
        self.asgi, self.table, self.mount, self.root = asgi, table, "", None
        if by_path and "app_root_path" in asgi:
            self.mount, self.root = _mount_of(asgi), asgi.get("root_path", "")

    def template(self) -> str | None:
        """See RequestScope."""
        asgi = self.asgi
        found = self.table.template(asgi.get("endpoint"), self._path(), asgi["method"])
        return super().template() if found is None else self.mount + found

    def find_name(self) -> str | None:
        """See RequestScope."""
        template = self.template()
        name = None if template is None else request_name(self.asgi["method"], template)
        if "endpoint" in self.asgi:  # from then on it is no guess
            self.name = name
        return name

    def _path(self) -> str:
        """The request's path as the table has it, however deep in mounts below that the request is by now."""
        path: str = self.asgi["path"]
        root = self.root
        if root is None:
            root = self.asgi.get("app_root_path", self.asgi.get("root_path", ""))
        return path[len(root) :] if root and path.startswith(root) else path


def _mount_of(scope: ASGIScope) -> str:
    """The template of the mounts that a middleware is below; empty if it is below none.

    Empty, too, for one whose template cannot be told: its path is made up by clients.
    """
    # Starlette's mounts leave the path of the outermost application.
    segments = scope.get("root_path", "")[len(scope["app_root_path"]) :].split("/")
    for name, value in (scope.get("path_params") or {}).items():
        if str(value) not in segments:
            return ""
        segments[segments.index(str(value))] = f"{{{name}}}"
    return "/".join(segments)
