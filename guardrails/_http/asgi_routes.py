"""Finds the route of an ASGI request, with the mounts on its way. Must not import a response."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from guardrails._http.routes import RouteTable
from guardrails._runtime.scope import RequestScope
from guardrails._util.names import request_name

__all__ = ["ASGIScope", "RoutedRequest"]

ASGIScope = MutableMapping[str, Any]


class RoutedRequest(RequestScope):
    """A request whose route can be looked up.

    Attributes:
        asgi: The ASGI connection scope.
        table: The routes of the application, as far as the middleware can see them.
        mount: The template of the mount of that application in another one; empty if there is none.
        root: The path of that mount in this request; None at the outermost application.
    """

    __slots__ = ("asgi", "mount", "root", "table")

    asgi: ASGIScope
    table: RouteTable
    mount: str
    root: str | None

    def set_destination(self, asgi: ASGIScope, table: RouteTable, *, by_path: bool) -> None:
        """Sets the routes that the request can go to.

        Args:
            asgi: The ASGI connection scope.
            table: The routes.
            by_path: Whether these routes are below the middleware, which may be below a mount itself.
        """
        self.asgi, self.table, self.mount, self.root = asgi, table, "", None
        if by_path and "app_root_path" in asgi:
            self.mount, self.root = _mount_of(asgi), asgi.get("root_path", "")

    def template(self) -> str | None:
        """See RequestScope."""
        asgi = self.asgi
        _, found = self.table.find(asgi.get("endpoint"), self._path(), asgi["method"])
        found = found or asgi.get("path_template") or None  # Litestar's
        return super().template() if found is None else self.mount + found

    def find_name(self) -> str | None:
        """See RequestScope."""
        template = self.template()
        name = None if template is None else request_name(self.asgi["method"], template)
        if "endpoint" in self.asgi or "path_template" in self.asgi:  # set by the router: it is certain now
            self.name = name
        return name

    def learn(self, began: float, *, served: bool) -> None:
        """Lets its route learn from it, if it has reached the endpoint; see `RouteStats.learn`."""
        asgi = self.asgi
        self.table.learn(asgi.get("endpoint"), self._path(), asgi["method"], self, began, served=served)

    def _path(self) -> str:
        """The request's path as the table has it, also while the request is in a mount below."""
        path: str = self.asgi["path"]
        root = self.root
        if root is None:
            root = self.asgi.get("app_root_path", self.asgi.get("root_path", ""))
        return path[len(root) :] if root and path.startswith(root) else path


def _mount_of(scope: ASGIScope) -> str:
    """Returns the template of the mounts around a middleware; empty if there is none.

    Also empty where the template is unknown, because the path itself is made up by clients.
    """
    # Starlette's mounts keep the path of the outermost application in the scope.
    segments = scope.get("root_path", "")[len(scope["app_root_path"]) :].split("/")
    for name, value in (scope.get("path_params") or {}).items():
        if str(value) not in segments:
            return ""
        segments[segments.index(str(value))] = f"{{{name}}}"
    return "/".join(segments)
